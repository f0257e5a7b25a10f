//! All periods in one place. The lab shortens them; against Azure only the defaults are accepted.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Milliseconds in JSON, [`Duration`] in code.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        u64::deserialize(d).map(Duration::from_millis)
    }
}

macro_rules! timing {
    ($($(#[$doc:meta])* $name:ident: $default:expr;)*) => {
        /// Every period that a part of Farshore waits, renews or gives up after.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default, deny_unknown_fields)]
        pub struct Timing {
            $($(#[$doc])* #[serde(with = "millis")] pub $name: Duration,)*
        }

        impl Default for Timing {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }
    };
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

timing! {
    /// What one second of a policy lasts (replication interval, spacing, retention).
    policy_second: secs(1);
    /// What one minute of the retry ladder lasts (R9.2).
    retry_minute: secs(60);
    /// A host renews its Lease this often.
    host_lease_renew: secs(20);
    /// A host not heard of for this long is lost.
    host_lost_after: secs(300);
    /// An agent publishes its VMs at least this often.
    inventory_refresh: secs(60);
    /// An agent or controller writes progress into one status at most this often.
    status_refresh: secs(60);
    /// The controller looks at a VM's cursor this often.
    cursor_poll: secs(60);
    /// An agent looks at its cursor this often while it waits for a cycle to be verified.
    verify_poll: secs(10);
    /// A replica server looks for the next commit at least this far apart,
    commit_poll_min: secs(5);
    /// and at most this far.
    commit_poll_max: secs(60);
    /// Lease on a replica blob (15 to 60 s; Azure's own limits).
    blob_lease: secs(60);
    /// A worker of the replica server renews its Lease this often.
    worker_lease_renew: secs(5);
    /// A worker not heard of for this long has left.
    worker_lost_after: secs(20);
    /// The upload SAS lives this long and is renewed at half of it.
    upload_sas: secs(24 * 3600);
    /// The download SAS lives this long, so that a fence reaches a host cut off from Kubernetes,
    download_sas: secs(6 * 24 * 3600);
    /// and is renewed this often.
    download_sas_renew: secs(24 * 3600);
    /// A checkpoint of initial replication older than this is converted and a new one made (R5.3).
    slice_age: secs(4 * 3600);
    /// The controller leads for this long after each renewal.
    leader_lease: secs(15);
    /// A stalled transfer is given up after this long without a byte.
    stall: secs(60);
    /// Connecting to storage is given up after this long.
    connect: secs(15);
    /// Every resource is looked at again after this long though nothing changed.
    resync_all: secs(300);
}

/// Two periods whose order matters stand in the wrong order.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("timing: {shorter} must be shorter than {longer}")]
pub struct BadTiming {
    /// The one that must be shorter.
    pub shorter: &'static str,
    /// The one that must be longer.
    pub longer: &'static str,
}

impl Timing {
    /// Checks that the periods can work together.
    ///
    /// # Errors
    /// The first pair in the wrong order.
    pub fn check(&self) -> Result<(), BadTiming> {
        let pairs = [
            ("hostLeaseRenew", self.host_lease_renew, "hostLostAfter", self.host_lost_after),
            ("workerLeaseRenew", self.worker_lease_renew, "workerLostAfter", self.worker_lost_after),
            ("commitPollMin", self.commit_poll_min, "commitPollMax", self.commit_poll_max),
            ("downloadSasRenew", self.download_sas_renew, "downloadSas", self.download_sas),
            ("uploadSas", self.upload_sas, "downloadSas", self.download_sas),
            ("commitPollMin", self.commit_poll_min, "uploadSas", self.upload_sas),
        ];
        match pairs.into_iter().find(|(_, shorter, _, longer)| shorter >= longer) {
            Some((shorter, _, longer, _)) => Err(BadTiming { shorter, longer }),
            None => Ok(()),
        }
    }

    /// What `seconds` of a policy last.
    #[must_use]
    pub fn policy(&self, seconds: u32) -> Duration {
        self.policy_second.saturating_mul(seconds)
    }

    /// The periods for a lab: policies and the retry ladder run 30 times as fast.
    #[must_use]
    pub fn lab() -> Self {
        let ms = Duration::from_millis;
        Self {
            policy_second: ms(33),
            retry_minute: ms(1000),
            host_lease_renew: ms(2000),
            host_lost_after: ms(10_000),
            inventory_refresh: ms(2000),
            status_refresh: ms(2000),
            cursor_poll: ms(1000),
            verify_poll: ms(200),
            commit_poll_min: ms(100),
            commit_poll_max: ms(1000),
            blob_lease: secs(15),
            worker_lease_renew: ms(1000),
            worker_lost_after: ms(4000),
            leader_lease: ms(5000),
            resync_all: ms(5000),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_the_lab_are_in_order_and_a_wrong_order_is_named() {
        assert_eq!(Timing::default().check(), Ok(()));
        assert_eq!(Timing::lab().check(), Ok(()));
        let bad = Timing { host_lost_after: secs(1), ..Timing::default() };
        assert_eq!(bad.check(), Err(BadTiming { shorter: "hostLeaseRenew", longer: "hostLostAfter" }));
    }

    #[test]
    fn a_file_may_name_some_periods_and_no_unknown_ones() {
        let some: Timing = serde_json::from_str(r#"{"stall": 1500}"#).unwrap();
        assert_eq!(some, Timing { stall: Duration::from_millis(1500), ..Timing::default() });
        assert!(serde_json::from_str::<Timing>(r#"{"stal": 1}"#).is_err());
    }
}
