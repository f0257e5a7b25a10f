//! Endpoints per cloud (R3.2): the allow list that a firewall needs, as data.

use crate::{Endpoint, EndpointError};

/// Where an installation's storage and identity live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cloud {
    /// Azure, commercial.
    AzurePublic,
    /// Azure, US Government.
    AzureUSGovernment,
}

/// What one cloud needs reachable by outbound HTTPS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloudEndpoints {
    /// Which cloud.
    pub cloud: Cloud,
    /// Name in the configuration.
    pub name: &'static str,
    /// What follows `<account>.blob.` in an account's host name.
    pub storage_suffix: &'static str,
    /// Host of the identity service.
    pub identity_host: &'static str,
    /// Host of the resource manager.
    pub resource_manager_host: &'static str,
    /// Token audience of the resource manager.
    pub resource_manager_audience: &'static str,
}

/// All clouds.
pub const CLOUDS: [CloudEndpoints; 2] = [
    CloudEndpoints {
        cloud: Cloud::AzurePublic,
        name: "AzurePublic",
        storage_suffix: "core.windows.net",
        identity_host: "login.microsoftonline.com",
        resource_manager_host: "management.azure.com",
        resource_manager_audience: "https://management.azure.com",
    },
    CloudEndpoints {
        cloud: Cloud::AzureUSGovernment,
        name: "AzureUSGovernment",
        storage_suffix: "core.usgovcloudapi.net",
        identity_host: "login.microsoftonline.us",
        resource_manager_host: "management.usgovcloudapi.net",
        resource_manager_audience: "https://management.usgovcloudapi.net",
    },
];

impl Cloud {
    /// The cloud of that name in the configuration.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Cloud> {
        CLOUDS.iter().find(|row| row.name == name).map(|row| row.cloud)
    }

    /// Its row of the table.
    #[must_use]
    pub const fn endpoints(self) -> &'static CloudEndpoints {
        let [public, us_government] = &CLOUDS;
        match self {
            Cloud::AzurePublic => public,
            Cloud::AzureUSGovernment => us_government,
        }
    }

    /// The blob endpoint of a storage account.
    ///
    /// # Errors
    /// The account name is not 3 to 24 lower-case letters and digits.
    pub fn blob_endpoint(self, account: &str) -> Result<Endpoint, EndpointError> {
        let valid = (3..=24).contains(&account.len())
            && account.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !valid {
            return Err(EndpointError::Account(account.to_owned()));
        }
        Endpoint::parse(&format!("https://{account}.blob.{}", self.endpoints().storage_suffix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // R3.2
    #[test]
    fn each_cloud_has_its_own_blob_host() {
        let public = Cloud::AzurePublic.blob_endpoint("fsprod1").unwrap();
        assert_eq!(public.as_str(), "https://fsprod1.blob.core.windows.net/");
        let gov = Cloud::by_name("AzureUSGovernment").unwrap().blob_endpoint("fsgov").unwrap();
        assert_eq!(gov.as_str(), "https://fsgov.blob.core.usgovcloudapi.net/");
        for row in &CLOUDS {
            assert_eq!(row.cloud.endpoints(), row, "{} is at its own place", row.name);
        }
    }

    #[test]
    fn a_name_that_is_no_account_cannot_redirect_the_endpoint() {
        for name in ["ab", "Evil", "a.b", "a/b", "evil.example/x", "0123456789012345678901234"] {
            assert!(Cloud::AzurePublic.blob_endpoint(name).is_err(), "{name}");
        }
    }
}
