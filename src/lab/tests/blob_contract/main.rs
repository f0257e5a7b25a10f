//! One suite through the client, run against the blob double (http and TLS) and against Azurite.
//!
//! Azurite judges the wire format and the authorization; the double adds what Azurite gets wrong
//! (differences of page ranges) and what it cannot do (faults, being killed).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "tests may fail loudly"
)]

mod access;
mod blocks;
mod containers;
mod delegation;
mod double;
mod killed;
mod leases;
mod pages;
mod place;

/// Runs each test on all three services.
macro_rules! contract {
    ($($module:ident :: $name:ident),* $(,)?) => {
        mod on_the_double {
            $(#[tokio::test] async fn $name() { crate::$module::$name(&crate::place::Place::double().await).await; })*
        }
        mod on_the_double_over_tls {
            $(#[tokio::test] async fn $name() { crate::$module::$name(&crate::place::Place::double_over_tls().await).await; })*
        }
        mod on_azurite {
            $(#[tokio::test] async fn $name() { crate::$module::$name(&crate::place::Place::azurite().await).await; })*
        }
    };
}

contract! {
    containers::a_container_is_made_once_and_keeps_its_metadata,
    containers::listings_are_by_prefix_in_parts_with_metadata,
    blocks::what_was_put_is_read_back,
    blocks::a_wrong_checksum_is_refused_and_leaves_nothing,
    blocks::of_many_writers_of_one_new_name_one_wins,
    blocks::of_many_writers_of_one_version_one_wins,
    blocks::conditions_decide_by_version,
    blocks::an_unchanged_blob_is_not_sent_again,
    blocks::what_is_missing_is_none_and_not_an_error,
    blocks::a_read_stops_at_its_limit,
    access::a_create_only_sas_creates_and_does_nothing_else,
    access::a_read_sas_reads_and_does_nothing_else,
    access::a_sas_outside_its_time_is_expired_and_a_forged_one_is_not_authorised,
    access::the_servers_clock_is_near_ours,
    pages::pages_are_written_cleared_and_listed,
    pages::a_snapshot_keeps_what_was,
    pages::wrong_page_writes_are_refused,
    pages::metadata_and_properties_of_a_page_blob,
    leases::only_the_holder_of_a_lease_writes,
    leases::a_lease_that_ran_out_goes_to_the_next_and_the_old_holder_hears_of_it,
    leases::a_lease_can_be_broken,
}
