//! Certificate requests of hosts: introduces new hosts, approves those of accepted ones, denies what asks for more.

use std::sync::Arc;

use farshore_api::{HyperVHost, HyperVHostSpec, annotation};
use farshore_core::host::{Decision, Known, Request, Subject, decide};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer as _;

use super::{rights, token};
use crate::context::Context;
use crate::watch::{Guarded, all, named};
use crate::write;

/// Reconciles one request.
pub async fn reconcile(object: Arc<Guarded<CertificateSigningRequest>>, ctx: Arc<Context>) -> Action {
    let Ok(csr) = &object.0 else { return Action::await_change() };
    if is_decided(csr) {
        return Action::await_change();
    }
    match act(csr, &ctx).await {
        Ok(()) => Action::await_change(),
        Err(error) => {
            warn!(request = csr.name_any(), error = %write::brief(&error), "certificate request not handled");
            Action::requeue(ctx.timing.retry_minute.min(ctx.timing.resync_all))
        }
    }
}

fn is_decided(csr: &CertificateSigningRequest) -> bool {
    let conditions = csr.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| matches!(c.type_.as_str(), "Approved" | "Denied" | "Failed"))
}

async fn act(csr: &CertificateSigningRequest, ctx: &Context) -> kube::Result<()> {
    let request = request(csr);
    let name = host_name(&request);
    let host = name.as_deref().and_then(|name| named(&ctx.stores.hosts, name));
    let bound = token::bound_to(ctx, &request.user);
    match decide(&request, host.as_ref().map(known).as_ref(), bound.as_deref()) {
        Decision::Ignore => Ok(()),
        Decision::Wait | Decision::KeyMismatch => {
            // The host's condition says what an administrator has to do.
            if let Some(host) = &host {
                ctx.queues.hosts.wake(kube::runtime::reflector::ObjectRef::new(&host.name_any())).await;
            }
            Ok(())
        }
        Decision::Introduce { name, site, fingerprint, token } => {
            introduce(ctx, &name, site, fingerprint, &token).await
        }
        Decision::Approve(host) => {
            rights::give(ctx, &host).await?;
            info!(request = csr.name_any(), host, "certificate request approved");
            let message = format!("HyperVHost {host} is accepted with this key");
            answer(csr, ctx, "Approved", "HostAccepted", message).await
        }
        Decision::Deny(why) => {
            warn!(request = csr.name_any(), why, "certificate request denied");
            answer(csr, ctx, "Denied", "NotAllowed", why).await
        }
    }
}

fn known(host: &HyperVHost) -> Known {
    Known {
        site: host.spec.site.clone(),
        accepted: host.spec.accepted,
        fingerprint: host.spec.key_fingerprint.clone(),
    }
}

async fn introduce(
    ctx: &Context,
    name: &str,
    site: String,
    key_fingerprint: String,
    token: &str,
) -> kube::Result<()> {
    let api: Api<HyperVHost> = Api::all(ctx.client.clone());
    let mut host = HyperVHost::new(name, HyperVHostSpec { site, accepted: false, key_fingerprint });
    host.metadata.annotations = Some([(token::TOKEN.to_owned(), token.to_owned())].into());
    match api.create(&PostParams::default(), &host).await {
        Ok(_) => info!(
            host = name,
            fingerprint = host.spec.key_fingerprint,
            "host introduced; it waits for acceptance"
        ),
        Err(error) if write::exists(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

async fn answer(
    csr: &CertificateSigningRequest,
    ctx: &Context,
    type_: &str,
    reason: &str,
    message: String,
) -> kube::Result<()> {
    let now = Time(ctx.now());
    let mut status = csr.status.clone().unwrap_or_default();
    status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
        type_: type_.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
    });
    let CertificateSigningRequestStatus { conditions, certificate: _ } = status;
    let api: Api<CertificateSigningRequest> = Api::all(ctx.client.clone());
    let patch = json!({
        "metadata": {"resourceVersion": csr.resource_version()},
        "status": {"conditions": conditions},
    });
    let params = PatchParams { field_manager: Some(write::MANAGER.into()), ..PatchParams::default() };
    match api.patch_approval(&csr.name_any(), &params, &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        // Somebody else answered; the watch tells.
        Err(error) if write::is_stale(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Does the host ask for a certificate with another key than the accepted one?
pub fn has_other_key(ctx: &Context, host: &HyperVHost) -> bool {
    let name = host.name_any();
    all(&ctx.stores.requests).iter().filter_map(|r| r.0.as_ref().ok()).any(|csr| {
        let request = request(csr);
        !is_decided(csr)
            && host_name(&request).as_deref() == Some(&name)
            && decide(&request, Some(&known(host)), None) == Decision::KeyMismatch
    })
}

/// Name of the host that a request is for.
pub fn of_host(csr: &CertificateSigningRequest) -> Option<String> {
    host_name(&request(csr))
}

fn host_name(request: &Request) -> Option<String> {
    let subject = request.subject.as_ref()?;
    subject.common_names.first()?.strip_prefix(annotation::HOST_USER_PREFIX).map(str::to_owned)
}

fn request(csr: &CertificateSigningRequest) -> Request {
    let spec = &csr.spec;
    Request {
        signer: spec.signer_name.clone(),
        user: spec.username.clone().unwrap_or_default(),
        groups: spec.groups.clone().unwrap_or_default(),
        usages: spec.usages.clone().unwrap_or_default(),
        subject: subject(&spec.request.0),
    }
}

/// Subject and key of a PEM request. Its signature was checked by the API server when it was made.
fn subject(pem: &[u8]) -> Option<Subject> {
    let (pem, _) = Pem::read(std::io::Cursor::new(pem)).ok()?;
    let (rest, csr) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let info = &csr.certification_request_info;
    let texts = |attributes: &mut dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>>| {
        attributes.map(|a| a.as_str().map(str::to_owned).ok()).collect::<Option<Vec<String>>>()
    };
    let alternative_names = csr
        .requested_extensions()
        .into_iter()
        .flatten()
        .any(|e| matches!(e, ParsedExtension::SubjectAlternativeName(_)));
    Some(Subject {
        common_names: texts(&mut info.subject.iter_common_name())?,
        organizations: texts(&mut info.subject.iter_organization())?,
        alternative_names,
        fingerprint: hex(&Sha256::digest(info.subject_pki.raw)),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, PublicKeyData as _};

    use super::*;

    fn pem(edit: impl FnOnce(&mut CertificateParams)) -> (Vec<u8>, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "farshore:host:h1");
        params.distinguished_name.push(DnType::OrganizationName, "farshore:hosts");
        edit(&mut params);
        let text = params.serialize_request(&key).unwrap().pem().unwrap();
        (text.into_bytes(), hex(&Sha256::digest(key.subject_public_key_info())))
    }

    #[test]
    fn subject_and_key_are_read_from_a_request() {
        let (bytes, fingerprint) = pem(|_| ());
        let want = Subject {
            common_names: vec!["farshore:host:h1".into()],
            organizations: vec!["farshore:hosts".into()],
            alternative_names: false,
            fingerprint,
        };
        assert_eq!(subject(&bytes), Some(want));
        let (bytes, _) =
            pem(|p| p.subject_alt_names = vec![rcgen::SanType::DnsName("x".try_into().unwrap())]);
        assert!(subject(&bytes).unwrap().alternative_names);
        assert_eq!(subject(b"not PEM"), None);
        assert_eq!(subject(&bytes[..bytes.len() / 2]), None);
    }
}
