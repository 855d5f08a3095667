//! Byte streams to connect over: TCP, with TLS where the endpoint says `wss://`.

use baton_core::flow::Endpoint;
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName};
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::tungstenite::http::Uri;

/// Makes byte streams. Implement it to connect through a proxy, or over a simulated network.
pub trait Connector: Clone + Send + Sync + 'static {
    /// What it makes.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Connects to the host and port of `endpoint`, with TLS if it wants that. The WebSocket is not its business.
    fn connect(
        &self,
        endpoint: &Endpoint,
    ) -> impl Future<Output = Result<Self::Stream, ConnectError>> + Send;
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The endpoint will never work.
    #[error("not a ws:// or wss:// URL with a host")]
    Endpoint,
    /// The host cannot be reached, or does not speak TLS as it should.
    #[error("cannot connect: {0}")]
    Io(#[from] io::Error),
    /// It did not take us as a WebSocket client.
    #[error("no WebSocket: {0}")]
    WebSocket(Box<tokio_tungstenite::tungstenite::Error>),
    /// It took too long.
    #[error("no connection within {0} s")]
    TimedOut(u64),
}

/// Host and port that an endpoint names, and whether it wants TLS.
fn target(endpoint: &Endpoint) -> Result<(String, u16, bool), ConnectError> {
    let uri: Uri = endpoint.0.parse().map_err(|_| ConnectError::Endpoint)?;
    let tls = match uri.scheme_str() {
        Some("ws") => false,
        Some("wss") => true,
        _ => return Err(ConnectError::Endpoint),
    };
    let host = uri
        .host()
        .filter(|host| !host.is_empty())
        .ok_or(ConnectError::Endpoint)?;
    // Brackets belong to the URL, not to the IPv6 address.
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    Ok((
        host,
        uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        tls,
    ))
}

/// TCP over the operating system; TLS by rustls with the Mozilla roots.
#[derive(Clone)]
pub struct TcpConnector {
    tls: TlsConnector,
}

impl TcpConnector {
    /// Trusts what browsers trust.
    #[must_use]
    pub fn new() -> Self {
        let roots = RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        };
        // The provider is named here, so that no other crate of the process can change it by feature or default.
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring serves the default protocol versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self::with_tls(Arc::new(config))
    }

    /// Trusts what `config` says.
    #[must_use]
    pub fn with_tls(config: Arc<ClientConfig>) -> Self {
        Self { tls: config.into() }
    }

    /// Whether the endpoint can be used at all, before anything is tried.
    pub fn check(endpoint: &Endpoint) -> Result<(), ConnectError> {
        target(endpoint).map(drop)
    }
}

impl Default for TcpConnector {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for TcpConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TcpConnector")
    }
}

impl Connector for TcpConnector {
    type Stream = TcpOrTls;

    async fn connect(&self, endpoint: &Endpoint) -> Result<TcpOrTls, ConnectError> {
        let (host, port, tls) = target(endpoint)?;
        let tcp = TcpStream::connect((host.as_str(), port)).await?;
        // Stanzas are small and wait for answers; Nagle's algorithm would add a round trip to each.
        tcp.set_nodelay(true)?;
        if !tls {
            return Ok(TcpOrTls::Tcp(tcp));
        }
        let name = ServerName::try_from(host).map_err(|_| ConnectError::Endpoint)?;
        Ok(TcpOrTls::Tls(Box::new(self.tls.connect(name, tcp).await?)))
    }
}

/// A TCP connection, with or without TLS.
#[derive(Debug)]
pub enum TcpOrTls {
    /// As it is.
    Tcp(TcpStream),
    /// Inside TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

macro_rules! either {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Self::Tcp(tcp) => {
                let $stream = Pin::new(tcp);
                $call
            }
            Self::Tls(tls) => {
                let $stream = Pin::new(tls.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for TcpOrTls {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for TcpOrTls {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_urls() {
        let read = |url: &str| target(&Endpoint(url.into())).ok();
        assert_eq!(
            read("wss://web.whatsapp.com/ws/chat"),
            Some(("web.whatsapp.com".into(), 443, true))
        );
        assert_eq!(
            read("ws://127.0.0.1:8080/ws/chat"),
            Some(("127.0.0.1".into(), 8080, false))
        );
        assert_eq!(read("ws://[::1]:81/"), Some(("::1".into(), 81, false)));
        for bad in [
            "",
            "http://host/",
            "host:80",
            "ws://",
            "ws:///path",
            "wss://ho st/",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
