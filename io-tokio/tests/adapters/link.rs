//! The link against a WebSocket server of the library it uses, over pipes in memory.

use baton_core::{flow::Endpoint, state::Micros};
use baton_tokio::{ConnectError, Connector, Env as _, Link, MAX_MESSAGE, Moved, ORIGIN, SystemEnv};
use futures_util::{SinkExt as _, StreamExt as _};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::io::DuplexStream;
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async_with_config,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
        protocol::WebSocketConfig,
    },
};

/// Gives out the pipes it was given; without any it waits for ever.
#[derive(Clone, Default)]
struct Pipes(Arc<Mutex<Vec<DuplexStream>>>);

impl Connector for Pipes {
    type Stream = DuplexStream;

    async fn connect(&self, _: &Endpoint) -> Result<DuplexStream, ConnectError> {
        let pipe = self.0.lock().unwrap().pop();
        match pipe {
            Some(pipe) => Ok(pipe),
            None => std::future::pending().await,
        }
    }
}

fn endpoint() -> Endpoint {
    Endpoint("ws://service.test/ws/chat".into())
}

/// A link that is up, and the other end of it.
async fn up(
    buffer: usize,
) -> (
    Link<Pipes, SystemEnv>,
    WebSocketStream<DuplexStream>,
    SystemEnv,
) {
    let (ours, theirs) = tokio::io::duplex(buffer);
    let pipes = Pipes::default();
    pipes.0.lock().unwrap().push(ours);
    let env = SystemEnv::new();
    let mut link = Link::new(pipes, env.clone());
    link.open(endpoint());
    #[expect(clippy::result_large_err, reason = "the callback's signature is given")]
    let check = |request: &Request, response: Response| {
        assert_eq!(request.uri().path(), "/ws/chat");
        assert_eq!(request.headers()["origin"], ORIGIN);
        assert_eq!(request.headers()["host"], "service.test");
        Ok(response)
    };
    let config = WebSocketConfig::default()
        .max_message_size(None)
        .max_frame_size(None);
    let accept = accept_hdr_async_with_config(theirs, check, Some(config));
    let (moved, server) = tokio::join!(link.next(true), accept);
    assert!(matches!(moved, Moved::Opened), "{moved:?}");
    (link, server.unwrap(), env)
}

fn closed(moved: Moved) -> String {
    match moved {
        Moved::Closed(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn one_transmit_is_one_binary_message() {
    let (mut link, mut server, _) = up(1 << 16).await;
    for words in [&b"first"[..], b"second, a longer one"] {
        link.queue(&mut words.to_vec());
    }
    let mut nothing = Vec::new();
    link.queue(&mut nothing);
    let read = async {
        [
            server.next().await.unwrap().unwrap(),
            server.next().await.unwrap().unwrap(),
        ]
    };
    let messages = tokio::select! { messages = read => messages, moved = link.next(true) => panic!("{moved:?}") };
    assert_eq!(
        messages,
        [
            Message::binary(&b"first"[..]),
            Message::binary(&b"second, a longer one"[..])
        ]
    );

    server.send(Message::Ping("x".into())).await.unwrap();
    server.send(Message::binary(&b"hello"[..])).await.unwrap();
    assert!(matches!(link.next(true).await, Moved::Received(bytes) if bytes == "hello"));
    let pong = tokio::select! { pong = server.next() => pong, moved = link.next(true) => panic!("{moved:?}") };
    assert_eq!(pong.unwrap().unwrap(), Message::Pong("x".into()));

    drop(server);
    assert!(!closed(link.next(true).await).is_empty());
    // Down: nothing happens, and nothing is taken in.
    link.queue(&mut b"lost".to_vec());
    assert!(
        tokio::time::timeout(Duration::from_millis(20), link.next(true))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn text_and_oversized_messages_end_the_connection() {
    let (mut link, mut server, _) = up(1 << 16).await;
    server.send(Message::text("{}")).await.unwrap();
    assert_eq!(closed(link.next(true).await), "the service sent text");

    for (size, fits) in [(MAX_MESSAGE, true), (MAX_MESSAGE + 1, false)] {
        let (mut link, mut server, _) = up(1 << 20).await;
        let sending = tokio::spawn(async move {
            let _ = server.send(Message::binary(vec![7; size])).await;
            server
        });
        let moved = link.next(true).await;
        assert_eq!(
            matches!(&moved, Moved::Received(bytes) if bytes.len() == size),
            fits
        );
        drop(link);
        sending.await.unwrap();
    }
}

/// A consumer that does not take what the service sends can still speak, and a service that does not take what we send
/// is still heard.
#[tokio::test]
async fn neither_direction_blocks_the_other() {
    let (mut link, mut server, _) = up(4096).await;
    // Nobody reads our words: 64 of these fill the pipe many times over.
    for _ in 0..64 {
        link.queue(&mut vec![1; 4096]);
    }
    server
        .send(Message::binary(&b"still heard"[..]))
        .await
        .unwrap();
    assert!(matches!(link.next(true).await, Moved::Received(bytes) if bytes == "still heard"));

    // Now the service reads, and we do not.
    let (mut sink, mut stream) = server.split();
    let flood =
        tokio::spawn(
            async move { while sink.send(Message::binary(vec![2; 4096])).await.is_ok() {} },
        );
    let read = async {
        for _ in 0..64 {
            assert_eq!(stream.next().await.unwrap().unwrap().len(), 4096);
        }
    };
    tokio::select! { () = read => {} moved = link.next(false) => panic!("{moved:?}") }
    drop(link);
    flood.await.unwrap();
}

#[tokio::test]
async fn a_service_that_never_reads_is_left() {
    let (mut link, _server, _) = up(4096).await;
    for _ in 0..3 {
        link.queue(&mut vec![0; MAX_MESSAGE]);
    }
    assert_eq!(closed(link.next(true).await), "the service does not read");
}

/// The last gap: words that were queued under a grant are not written when it has run out.
#[tokio::test]
async fn nothing_is_written_after_the_grant() {
    let (mut link, mut server, env) = up(4096).await;
    link.granted_until(env.now().mono.plus(Micros::from_millis(30)));
    link.queue(&mut b"in time".to_vec());
    let read = tokio::select! { read = server.next() => read, moved = link.next(true) => panic!("{moved:?}") };
    assert_eq!(read.unwrap().unwrap(), Message::binary(&b"in time"[..]));
    link.queue(&mut b"too late".to_vec());
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert!(closed(link.next(true).await).contains("grant"));
    assert!(!matches!(server.next().await, Some(Ok(Message::Binary(_)))));

    // The same when the connection was to be closed properly: no last words.
    let (mut link, mut server, env) = up(4096).await;
    link.queue(&mut b"too late".to_vec());
    link.close();
    link.granted_until(env.now().mono);
    closed(link.next(true).await);
    assert!(!matches!(server.next().await, Some(Ok(Message::Binary(_)))));
}

#[tokio::test]
async fn a_close_lets_the_last_words_out() {
    let (mut link, mut server, _) = up(1024).await;
    link.queue(&mut vec![3; 100_000]);
    link.close();
    assert!(link.is_closing());
    let served = tokio::spawn(async move {
        // What the service sends meanwhile is dropped.
        let _ = server.send(Message::binary(&b"too late"[..])).await;
        let words = server.next().await.unwrap().unwrap();
        let goodbye = server.next().await.unwrap().unwrap();
        (
            words.len(),
            matches!(goodbye, Message::Close(_)),
            server.next().await.is_none(),
        )
    });
    assert_eq!(closed(link.next(true).await), "closed");
    assert_eq!(served.await.unwrap(), (100_000, true, true));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_says_no_goodbye_is_not_waited_for() {
    let (mut link, _server, env) = up(1024).await;
    link.close();
    let begin = env.now().mono;
    assert_eq!(closed(link.next(true).await), "closed");
    assert!(env.now().mono.since(begin) <= Micros::from_millis(1100));
}

#[tokio::test(start_paused = true)]
async fn connecting_takes_20_seconds_at_most() {
    let env = SystemEnv::new();
    let mut link = Link::new(Pipes::default(), env.clone());
    link.open(endpoint());
    // Dropping the wait and waiting again changes nothing.
    assert!(
        tokio::time::timeout(Duration::from_secs(5), link.next(true))
            .await
            .is_err()
    );
    assert_eq!(closed(link.next(true).await), "no connection within 20 s");
    assert_eq!(env.now().mono.0 / 1_000_000, 20);
    // A close before there is a connection is answered too.
    link.open(endpoint());
    link.close();
    assert_eq!(closed(link.next(true).await), "closed");
}
