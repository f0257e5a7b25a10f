//! What holds for every schema, so that no field is added without its bounds.

use std::collections::BTreeSet;

use super::*;

/// Calls `check` with the path and schema of every field of every kind.
fn each_field(mut check: impl FnMut(&str, &JSONSchemaProps)) {
    fn walk(path: &str, schema: &JSONSchemaProps, check: &mut impl FnMut(&str, &JSONSchemaProps)) {
        check(path, schema);
        for (name, child) in schema.properties.iter().flatten() {
            walk(&format!("{path}.{name}"), child, check);
        }
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
            walk(&format!("{path}[]"), items, check);
        }
    }
    for crd in crds() {
        let root = crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
        for part in ["spec", "status"] {
            if let Some(schema) = root.properties.as_ref().unwrap().get(part) {
                walk(&format!("{}.{part}", crd.spec.names.kind), schema, &mut check);
            }
        }
    }
}

#[test]
fn every_string_and_every_list_is_bounded() {
    let mut unbounded = Vec::new();
    each_field(|path, s| {
        let bounded = match s.type_.as_deref() {
            Some("string") => {
                s.max_length.is_some() || s.enum_.is_some() || s.format.as_deref() == Some("date-time")
            }
            Some("array") => s.max_items.is_some(),
            Some("integer") => s.minimum.is_some(),
            Some(_) => true,
            None => false,
        };
        if !bounded {
            unbounded.push(path.to_owned());
        }
    });
    assert_eq!(unbounded, Vec::<String>::new());
}

#[test]
fn every_field_is_described_and_every_rule_has_a_message() {
    let mut bare = Vec::new();
    each_field(|path, s| {
        let rules = s.x_kubernetes_validations.iter().flatten();
        if s.description.is_none() && !path.ends_with(']') || rules.clone().any(|r| r.message.is_none()) {
            bare.push(path.to_owned());
        }
    });
    assert_eq!(bare, Vec::<String>::new());
}

#[test]
fn nothing_is_nullable_and_no_default_is_empty() {
    each_field(|path, s| {
        assert_eq!(s.nullable, None, "{path}");
        assert!(s.any_of.is_none() && s.one_of.is_none() && s.all_of.is_none(), "{path}");
        if let Some(default) = &s.default {
            assert!(!default.0.is_null() && default.0 != serde_json::json!([]), "{path}");
            assert!(!path.contains(".status"), "{path}: the server must add nothing to what a part reports");
        }
    });
}

#[test]
fn names_are_unique_and_all_kinds_share_group_and_category() {
    let crds = crds();
    let mut short = BTreeSet::new();
    for crd in &crds {
        assert_eq!(
            (crd.spec.group.as_str(), crd.spec.versions[0].name.as_str()),
            (crate::GROUP, crate::VERSION)
        );
        let names = &crd.spec.names;
        assert_eq!(names.categories.as_deref(), Some(&["farshore".to_owned()][..]), "{}", names.kind);
        for name in names.short_names.iter().flatten() {
            assert!(short.insert(name.clone()), "{name} is used twice");
        }
        assert_eq!(crd.spec.versions[0].subresources.is_some(), names.kind != "HyperVVM");
    }
    assert_eq!(crds.len(), 8);
}
