//! Tests of the client against a scripted server: what is on the wire, and what faults become.

mod faults;
mod secrets;
mod server;
mod wire;

use std::time::Duration;

use crate::{BlobService, Container, Credential, Endpoint, Http, HttpOptions, Sas};

const SAS: &str = "sv=2022-11-02&se=2099-01-01T00%3A00%3A00Z&sr=c&sp=c&sig=VERYSECRET%3D";

fn options() -> HttpOptions {
    HttpOptions {
        connect_timeout: Duration::from_secs(5),
        stall_timeout: Duration::from_secs(20),
        ..Default::default()
    }
}

fn container(base: &str, options: &HttpOptions) -> Container {
    let endpoint = Endpoint::parse(base).unwrap();
    let http = Http::new(options).unwrap();
    BlobService::with_http(&http, endpoint, Credential::Sas(Sas::new(SAS))).container("fs-1-up")
}
