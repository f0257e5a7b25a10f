//! Free ports on loopback that stay ours between choosing and listening.

use std::{
    fs::{File, OpenOptions},
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
};

use super::error::{Error, Result};

/// Below the range that the kernel takes for outgoing connections (32768 upwards), so that none of
/// those lands on a port between our choice and the child's `listen`.
const FROM: u16 = 18_000;
const TO: u16 = 30_000;

/// A port that nobody listens on and that no other lab on this machine will choose while this lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// Its lock says "taken" to other labs; the kernel lets go of it with the process.
    _claim: File,
}

impl Port {
    /// Any free port.
    pub fn free() -> Result<Self> {
        let span = TO - FROM;
        let first: u16 = rand::random::<u16>() % span;
        (0..span)
            .find_map(|step| Self::claim(FROM + (first + step) % span))
            .ok_or(Error::NoPort { from: FROM, to: TO })
    }

    /// This port if it is free, else any.
    pub fn prefer(number: Option<u16>) -> Result<Self> {
        number.and_then(Self::claim).map_or_else(Self::free, Ok)
    }

    /// The number.
    pub fn number(&self) -> u16 {
        self.number
    }

    fn claim(number: u16) -> Option<Self> {
        let folder = claims();
        std::fs::create_dir_all(&folder).ok()?;
        let claim = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(number.to_string()))
            .ok()?;
        claim.try_lock().ok()?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, number)).ok()?;
        Some(Self { number, _claim: claim })
    }
}

fn claims() -> PathBuf {
    std::env::temp_dir().join(format!("farshore-ports-{}", nix::unistd::getuid()))
}

#[cfg(test)]
mod tests {
    use super::Port;

    #[test]
    fn a_port_is_given_once_while_it_is_held() {
        let first = Port::free().unwrap();
        let second = Port::prefer(Some(first.number())).unwrap();
        assert_ne!(first.number(), second.number());
        let number = first.number();
        drop(first);
        assert_eq!(Port::prefer(Some(number)).unwrap().number(), number);
    }
}
