//! A cable that can be pulled: a TCP relay on loopback in front of a service.
//!
//! Whoever shall be cut off is given the link's address instead of the service's.

use std::{net::Ipv4Addr, sync::Arc};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use super::{
    error::{Error, Result},
    port::Port,
};

/// A relay; ends when dropped.
pub struct Link {
    port: Port,
    whole: Arc<watch::Sender<bool>>,
    accepting: JoinHandle<()>,
}

impl Link {
    /// A link to a port on loopback, at `preferred` if that is free.
    pub async fn to(target: u16, preferred: Option<u16>) -> Result<Self> {
        let port = Port::prefer(preferred)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.number()))
            .await
            .map_err(Error::file(format!("127.0.0.1:{}", port.number())))?;
        let whole = Arc::new(watch::Sender::new(true));
        let accepting = tokio::spawn(accept(listener, target, Arc::clone(&whole)));
        Ok(Self { port, whole, accepting })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Breaks all connections, and every new one at once, until [`Link::mend`].
    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    /// Lets new connections through again.
    pub fn mend(&self) {
        self.whole.send_replace(true);
    }

    /// Whether it lets connections through.
    pub fn is_whole(&self) -> bool {
        *self.whole.borrow()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, target: u16, whole: Arc<watch::Sender<bool>>) {
    loop {
        // A failing accept is the peer's connection that is already gone.
        let Ok((near, _)) = listener.accept().await else { continue };
        let mut whole = whole.subscribe();
        if *whole.borrow_and_update() {
            tokio::spawn(async move {
                tokio::select! {
                    () = relay(near, target) => {}
                    // Also when the link is dropped.
                    _ = whole.wait_for(|whole| !whole) => {}
                }
            });
        }
    }
}

async fn relay(mut near: TcpStream, target: u16) {
    let Ok(mut far) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
    drop(near.set_nodelay(true));
    drop(far.set_nodelay(true));
    // How a connection ended is the business of those at its ends.
    drop(copy_bidirectional(&mut near, &mut far).await);
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_cut_link_breaks_old_and_new_connections_until_it_is_mended() {
        let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let target = service.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = service.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    drop(tokio::io::copy(&mut read, &mut write).await);
                });
            }
        });
        let link = Link::to(target, None).await.unwrap();
        let connect = async || TcpStream::connect((Ipv4Addr::LOCALHOST, link.port())).await.unwrap();
        let mut byte = [0];

        let mut old = connect().await;
        old.write_all(b"x").await.unwrap();
        old.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"x", "it relays");

        link.cut();
        assert!(old.read_exact(&mut byte).await.is_err(), "the old connection breaks");
        let mut new = connect().await;
        drop(new.write_all(b"x").await);
        assert!(new.read_exact(&mut byte).await.is_err(), "a new one too");

        link.mend();
        let mut again = connect().await;
        again.write_all(b"y").await.unwrap();
        again.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"y");
    }
}
