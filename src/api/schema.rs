//! Schemas of the small values that many fields share, bounded so that CEL costs and etcd stay bounded.

use schemars::{Schema, SchemaGenerator, json_schema};

/// A GUID as Hyper-V writes them, either case.
pub(crate) const GUID: &str = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$";
/// The same in lower case: what our own parts write.
pub(crate) const GUID_LOWER: &str = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$";
/// Most disks of one VM.
pub(crate) const MAX_DISKS: u32 = 64;

pub(crate) fn guid(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 36, "maxLength": 36, "pattern": GUID})
}

pub(crate) fn guid_lower(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 36, "maxLength": 36, "pattern": GUID_LOWER})
}

/// Disks' ids, each once.
pub(crate) fn disk_ids(g: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "maxItems": MAX_DISKS, "x-kubernetes-list-type": "set", "items": guid_lower(g)})
}

/// At most three reference points are kept per VM; ids as Hyper-V gives them.
pub(crate) fn own_points(g: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "maxItems": 8, "x-kubernetes-list-type": "set", "items": guid(g)})
}

/// Name of a Kubernetes object (DNS subdomain).
pub(crate) fn name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": 253,
        "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"})
}

/// Name of a namespace (DNS label).
pub(crate) fn namespace(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"})
}

/// Namespaces that may use a cluster-scoped object; `*` is all of them.
pub(crate) fn allowed_namespaces(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "minItems": 1, "maxItems": 256, "x-kubernetes-list-type": "set",
        "items": {"type": "string", "minLength": 1, "maxLength": 63,
                  "pattern": "^(\\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$"}})
}

/// A word: an error code, a step, a feature.
pub(crate) fn word(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 128})
}

pub(crate) fn words(g: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "maxItems": 64, "items": word(g)})
}

/// A sentence or two for a person.
pub(crate) fn text(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 2048})
}

/// A path on a Windows host.
pub(crate) fn path(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 1024})
}

/// A BLAKE3 hash in lower-case hex.
pub(crate) fn hash(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 64, "pattern": "^[0-9a-f]{64}$"})
}

/// A term or a stream: six decimal digits in names.
pub(crate) fn term(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "format": "int64", "minimum": 1, "maximum": 999_999})
}

/// An epoch: any integer that JSON carries exactly.
pub(crate) fn epoch(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "format": "int64", "minimum": 1, "maximum": 9_007_199_254_740_991_i64})
}

/// Name of a storage account.
pub(crate) fn account(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 3, "maxLength": 24, "pattern": "^[a-z0-9]+$"})
}

/// Name of a blob container.
pub(crate) fn container(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 3, "maxLength": 63, "pattern": "^[a-z0-9](-?[a-z0-9])+$"})
}

/// Base URL of a blob endpoint.
pub(crate) fn url(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 8, "maxLength": 512, "pattern": "^https?://[^ ?#]+$"})
}

/// PEM certificates.
pub(crate) fn pem(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 16384, "pattern": "^-----BEGIN CERTIFICATE-----"})
}

/// The `conditions` of every status: a map by `type`, so that several writers own their own.
pub(crate) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": 16,
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {"type": "string", "maxLength": 316, "description": "What is observed, in CamelCase."},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "True, False or Unknown."},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0,
                    "description": "metadata.generation that was looked at."},
                "lastTransitionTime": {"type": "string", "format": "date-time", "description": "When the status last changed."},
                "reason": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                    "description": "Why, as one CamelCase word for programs."},
                "message": {"type": "string", "maxLength": 4096, "description": "Why and what to do, for a person."}
            }
        }
    })
}
