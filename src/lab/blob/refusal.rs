//! Errors as the service words them: status, code, XML.

use http::{HeaderName, StatusCode};

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: String,
    pub(super) message: String,
    /// Further elements of the XML.
    pub(super) detail: Option<(&'static str, String)>,
    pub(super) headers: Vec<(HeaderName, String)>,
}

impl Refusal {
    pub(super) fn new(status: u16, code: impl Into<String>, message: impl Into<String>) -> Refusal {
        Refusal {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            code: code.into(),
            message: message.into(),
            detail: None,
            headers: Vec::new(),
        }
    }

    /// The body that goes with it.
    pub(super) fn xml(&self) -> String {
        let detail = self.detail.as_ref();
        let detail = detail.map(|(name, text)| format!("<{name}>{}</{name}>", escape(text)));
        format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>{}</Code><Message>{}</Message>{}</Error>",
            escape(&self.code),
            escape(&self.message),
            detail.unwrap_or_default()
        )
    }
}

/// One function per refusal that has one form only.
macro_rules! refusals {
    ($($name:ident $status:literal $code:literal $message:literal;)*) => {
        $(pub(super) fn $name() -> Refusal { Refusal::new($status, $code, $message) })*
    };
}

refusals! {
    no_authentication 401 "NoAuthenticationInformation" "Server failed to authenticate the request. Please refer to the information in the www-authenticate header.";
    authentication_failed 403 "AuthenticationFailed" "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly including the signature.";
    permission_mismatch 403 "AuthorizationPermissionMismatch" "This request is not authorized to perform this operation using this permission.";
    resource_mismatch 403 "AuthorizationResourceTypeMismatch" "This request is not authorized to perform this operation using this resource type.";
    overwrite_refused 403 "UnauthorizedBlobOverwrite" "This request is not authorized to perform blob overwrites.";
    container_not_found 404 "ContainerNotFound" "The specified container does not exist.";
    container_exists 409 "ContainerAlreadyExists" "The specified container already exists.";
    blob_not_found 404 "BlobNotFound" "The specified blob does not exist.";
    blob_exists 409 "BlobAlreadyExists" "The specified blob already exists.";
    condition_not_met 412 "ConditionNotMet" "The condition specified using HTTP conditional header(s) is not met.";
    wrong_kind 409 "InvalidBlobType" "The blob type is invalid for this operation.";
    snapshots_present 409 "SnapshotsPresent" "This operation is not permitted because the blob has snapshots.";
    invalid_range 416 "InvalidRange" "The range specified is invalid for the current size of the resource.";
    invalid_page_range 416 "InvalidPageRange" "The page range specified is invalid.";
    too_large 413 "RequestBodyTooLarge" "The request body is too large and exceeds the maximum permissible limit.";
    crc_mismatch 400 "Crc64Mismatch" "The CRC64 value specified in the request did not match with the CRC64 value calculated by the server.";
    md5_mismatch 400 "Md5Mismatch" "The MD5 value specified in the request did not match with the MD5 value calculated by the server.";
    previous_not_found 409 "PreviousSnapshotNotFound" "The previous snapshot is not found.";
    previous_newer 400 "PreviousSnapshotCannotBeNewer" "The prevsnapshot query parameter value is newer than snapshot query parameter value.";
    busy 503 "ServerBusy" "The server is currently unable to receive requests. Please retry your request.";
    source_refused 403 "CannotVerifyCopySource" "This request is not authorized to perform this operation.";
    not_implemented 501 "APINotImplemented" "The blob double does not know this operation.";
    lease_missing 412 "LeaseIdMissing" "There is currently a lease on the blob and no lease ID was specified in the request.";
    lease_mismatch 412 "LeaseIdMismatchWithBlobOperation" "The lease ID specified did not match the lease ID for the blob.";
    lease_lost 412 "LeaseLost" "A lease ID was specified, but the lease for the blob has expired.";
    lease_not_present 412 "LeaseNotPresentWithBlobOperation" "There is currently no lease on the blob.";
    lease_held 409 "LeaseAlreadyPresent" "There is already a lease present.";
    lease_breaking 409 "LeaseIsBreakingAndCannotBeAcquired" "The lease ID matched, but the lease is currently in breaking state and cannot be acquired until it is broken.";
    lease_other 409 "LeaseIdMismatchWithLeaseOperation" "The lease ID specified did not match the lease ID for the blob.";
    lease_none 409 "LeaseNotPresentWithLeaseOperation" "There is currently no lease on the blob.";
    lease_broken 409 "LeaseIsBrokenAndCannotBeRenewed" "The lease ID matched, but the lease has been broken explicitly and cannot be renewed.";
}

pub(super) fn invalid_header(name: &str) -> Refusal {
    let mut refusal = Refusal::new(
        400,
        "InvalidHeaderValue",
        "The value for one of the HTTP headers is not in the correct format.",
    );
    refusal.detail = Some(("HeaderName", name.to_owned()));
    refusal
}

pub(super) fn invalid_query(name: &str) -> Refusal {
    let mut refusal = Refusal::new(
        400,
        "InvalidQueryParameterValue",
        "Value for one of the query parameters specified in the request URI is invalid.",
    );
    refusal.detail = Some(("QueryParameterName", name.to_owned()));
    refusal
}

/// The disk under the double failed.
pub(super) fn internal(error: &std::io::Error) -> Refusal {
    tracing::error!(%error, "the double's own storage failed");
    Refusal::new(500, "InternalError", "The server encountered an internal error.")
}

/// For text between tags and in attributes.
pub(super) fn escape(text: &str) -> String {
    quick_xml::escape::escape(text).into_owned()
}
