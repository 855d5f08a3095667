//! `wss://` with the connector that everybody uses, against a certificate of our own.

use baton_core::flow::Endpoint;
use baton_tokio::{Link, Moved, SystemEnv, TcpConnector};
use futures_util::StreamExt as _;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Self-signed for `localhost`, used for nothing else.
const CERTIFICATE: &[u8] = include_bytes!("localhost.crt.der");
const KEY: &[u8] = include_bytes!("localhost.key.der");

async fn serve() -> (TcpListener, TlsAcceptor, String) {
    let key = PrivateKeyDer::try_from(KEY).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(CERTIFICATE)], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "wss://localhost:{}/ws/chat",
        listener.local_addr().unwrap().port()
    );
    (listener, TlsAcceptor::from(Arc::new(config)), url)
}

#[tokio::test]
async fn a_trusted_service_is_spoken_to() {
    let (listener, acceptor, url) = serve().await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(CERTIFICATE)).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut link = Link::new(TcpConnector::with_tls(Arc::new(config)), SystemEnv::new());
    link.open(Endpoint(url));
    let server = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let tls = acceptor.accept(tcp).await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(tls).await.unwrap();
        socket.next().await.unwrap().unwrap()
    });
    assert!(matches!(link.next(true).await, Moved::Opened));
    link.queue(&mut b"sealed".to_vec());
    link.close();
    assert!(matches!(link.next(true).await, Moved::Closed(_)));
    assert_eq!(server.await.unwrap().into_data(), "sealed");
}

#[tokio::test]
async fn a_stranger_is_not() {
    let (listener, acceptor, url) = serve().await;
    let mut link = Link::new(TcpConnector::new(), SystemEnv::new());
    link.open(Endpoint(url));
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        assert!(acceptor.accept(tcp).await.is_err());
    });
    match link.next(true).await {
        Moved::Closed(why) => assert!(why.contains("certificate"), "{why}"),
        moved => panic!("{moved:?}"),
    }
}

#[tokio::test]
async fn nobody_there_is_an_error_at_once() {
    let mut link = Link::new(TcpConnector::new(), SystemEnv::new());
    for url in ["ws://127.0.0.1:9/ws/chat", "not a url"] {
        link.open(Endpoint(url.into()));
        assert!(matches!(link.next(true).await, Moved::Closed(_)));
    }
}
