//! Operations on the account and on containers.

use std::sync::Arc;

use http::StatusCode;

use super::{
    body::Failure,
    refusal::{self, escape},
    reply::{Reply, etag, http_date},
    server::Call,
    store::{Container, ContainerInfo, time_of},
};

pub(super) fn found(call: &Call) -> Result<Arc<Container>, Failure> {
    call.shared.store.container(&call.target.container).ok_or_else(|| refusal::container_not_found().into())
}

pub(super) fn service_properties() -> Reply {
    Reply::xml("<?xml version=\"1.0\" encoding=\"utf-8\"?><StorageServiceProperties/>".to_owned())
}

pub(super) fn list(call: &Call) -> Reply {
    let prefix = call.target.query("prefix").unwrap_or_default();
    let all = call.shared.store.containers();
    let rows: String = all.iter().filter(|c| c.name.starts_with(prefix)).map(|c| row(c)).collect();
    Reply::xml(format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults><Containers>{rows}</Containers>\
         <NextMarker/></EnumerationResults>"
    ))
}

fn row(container: &Container) -> String {
    let info = container.info();
    format!(
        "<Container><Name>{}</Name><Properties><Last-Modified>{}</Last-Modified><Etag>{}</Etag></Properties></Container>",
        escape(&container.name),
        http_date(time_of(info.etag)),
        escape(&etag(info.etag))
    )
}

/// 3 to 63 of lower-case letters, digits and single hyphens, a letter or digit at both ends.
fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (3..=63).contains(&name.len())
        && name.bytes().all(|b| plain(b) || b == b'-')
        && !name.contains("--")
        && !name.starts_with('-')
        && !name.ends_with('-')
}

pub(super) fn create(call: &Call) -> Result<Reply, Failure> {
    let name = &call.target.container;
    if !is_name(name) {
        let message = "The specified resource name contains invalid characters or has an invalid length.";
        return Err(refusal::Refusal::new(400, "InvalidResourceName", message).into());
    }
    let made = call.shared.store.create_container(name, call.metadata())?;
    let info = made.ok_or_else(refusal::container_exists)?;
    Ok(Reply::new(StatusCode::CREATED).tagged(info.etag))
}

pub(super) fn properties(call: &Call) -> Result<Reply, Failure> {
    let info = found(call)?.info();
    let reply = Reply::new(StatusCode::OK)
        .tagged(info.etag)
        .metadata(&info.metadata)
        .with("x-ms-lease-state", "available")
        .with("x-ms-lease-status", "unlocked")
        .with("x-ms-has-immutability-policy", "false")
        .with("x-ms-has-legal-hold", "false");
    Ok(reply)
}

pub(super) fn set_metadata(call: &Call) -> Result<Reply, Failure> {
    let container = found(call)?;
    let info = ContainerInfo { etag: call.shared.store.tag(), metadata: call.metadata() };
    container.set_info(info.clone())?;
    Ok(Reply::new(StatusCode::OK).tagged(info.etag))
}

pub(super) fn delete(call: &Call) -> Result<Reply, Failure> {
    if call.shared.store.delete_container(&call.target.container)? {
        Ok(Reply::new(StatusCode::ACCEPTED))
    } else {
        Err(refusal::container_not_found().into())
    }
}
