//! The way from one host to a PostgreSQL server, which can be cut: bytes stop, in both directions and on every
//! connection, new ones included, and nobody is told. When it is mended they go on where they were, as the packets of a
//! real network would.
//!
//! So a host that is cut off loses its presence too, which its server notices by itself.

use std::{net::Ipv4Addr, path::PathBuf};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::AbortHandle,
};

/// Where the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Server {
    Tcp(String),
    Socket(PathBuf),
}

/// A running relay. Ends, with its connections, when it is dropped.
#[derive(Debug)]
pub(super) struct Relay {
    cut: watch::Sender<bool>,
    task: AbortHandle,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    /// Starts one for the server in `url`; with it goes the URL that leads through it. `None` for an URL that could not
    /// lead through anything: it has several hosts, or the server's name is to be proved.
    pub(super) async fn to(url: &str) -> std::io::Result<Option<(Self, String)>> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let Some((server, through)) = redirect(url, listener.local_addr()?.port()) else {
            return Ok(None);
        };
        let (cut, is_cut) = watch::channel(false);
        let task = tokio::spawn(accept(listener, server, is_cut)).abort_handle();
        Ok(Some((Self { cut, task }, through)))
    }

    /// Cuts the way, or mends it.
    pub(super) fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

/// The server that `url` leads to, and the same URL with `port` of loopback in its place.
fn redirect(url: &str, port: u16) -> Option<(Server, String)> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (user, address) = match authority.rsplit_once('@') {
        Some((user, address)) => (format!("{user}@"), address),
        None => (String::new(), authority),
    };
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let mut parameters: Vec<&str> = query.split('&').filter(|one| !one.is_empty()).collect();
    if address.contains(',') || parameters.contains(&"sslmode=verify-full") {
        return None;
    }
    let mut named = |name: &str| {
        let at = parameters.iter().position(|one| {
            one.strip_prefix(name)
                .is_some_and(|value| value.starts_with('='))
        })?;
        Some(parameters.remove(at)[name.len() + 1..].replace("%2F", "/"))
    };
    let (host, number) = (named("host"), named("port"));
    let (written, asked) = match address.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((host, port)) if !port.contains(']') => (host, Some(port.to_owned())),
        _ => (address, None),
    };
    let number = number.or(asked).unwrap_or_else(|| "5432".to_owned());
    let host = host.unwrap_or_else(|| written.replace("%2F", "/"));
    let server = match host.as_str() {
        "" => Server::Tcp(format!("localhost:{number}")),
        directory if directory.starts_with('/') => {
            Server::Socket([directory, &format!(".s.PGSQL.{number}")].iter().collect())
        }
        host => Server::Tcp(format!("{host}:{number}")),
    };
    let mut through = format!("{scheme}://{user}{}:{port}{path}", Ipv4Addr::LOCALHOST);
    if !parameters.is_empty() {
        through.push('?');
        through.push_str(&parameters.join("&"));
    }
    Some((server, through))
}

async fn accept(listener: TcpListener, server: Server, cut: watch::Receiver<bool>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                let _ = client.set_nodelay(true);
                connections.spawn(connection(client, server.clone(), cut.clone()));
            }
        }
    }
}

/// One connection to its end. That either side is gone is the other's to know as soon as the way is open.
async fn connection(client: TcpStream, server: Server, mut cut: watch::Receiver<bool>) {
    open(&mut cut).await;
    let done = match server {
        Server::Tcp(address) => match TcpStream::connect(address).await {
            Ok(server) => {
                let _ = server.set_nodelay(true);
                both_ways(client, server, cut).await
            }
            Err(error) => Err(error),
        },
        Server::Socket(path) => match UnixStream::connect(path).await {
            Ok(server) => both_ways(client, server, cut).await,
            Err(error) => Err(error),
        },
    };
    if let Err(error) = done {
        tracing::debug!(%error, "a relayed connection");
    }
}

async fn both_ways<A, B>(a: A, b: B, cut: watch::Receiver<bool>) -> std::io::Result<()>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (from_a, to_a) = tokio::io::split(a);
    let (from_b, to_b) = tokio::io::split(b);
    tokio::select! {
        biased;
        done = one_way(from_a, to_b, cut.clone()) => done,
        done = one_way(from_b, to_a, cut) => done,
    }
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut cut: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await;
        // What was under way when the way was cut arrives when it is mended; so does the end.
        open(&mut cut).await;
        match read? {
            0 => return Ok(()),
            count => {
                to.write_all(buffer.get(..count).unwrap_or_default())
                    .await?
            }
        }
    }
}

/// Until the way is open; for ever if there is nobody left to open it.
async fn open(cut: &mut watch::Receiver<bool>) {
    if cut.wait_for(|cut| !cut).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(address: &str) -> Server {
        Server::Tcp(address.to_owned())
    }

    #[test]
    fn the_server_is_where_the_url_says() {
        let through = |url: &str| redirect(url, 7).unwrap();
        for (url, server, expected) in [
            (
                "postgres://baton:s@ecret@db.example:6000/baton?sslmode=require",
                tcp("db.example:6000"),
                "postgres://baton:s@ecret@127.0.0.1:7/baton?sslmode=require",
            ),
            (
                "postgresql://[::1]/b",
                tcp("[::1]:5432"),
                "postgresql://127.0.0.1:7/b",
            ),
            (
                "postgres:///b?user=me&host=/run/pg&port=6001",
                Server::Socket("/run/pg/.s.PGSQL.6001".into()),
                "postgres://127.0.0.1:7/b?user=me",
            ),
            (
                "postgres://%2Frun%2Fpg/b",
                Server::Socket("/run/pg/.s.PGSQL.5432".into()),
                "postgres://127.0.0.1:7/b",
            ),
            (
                "postgres:///",
                tcp("localhost:5432"),
                "postgres://127.0.0.1:7/",
            ),
        ] {
            assert_eq!(through(url), (server, expected.to_owned()), "{url}");
        }
        assert_eq!(redirect("postgres://a,b/c", 7), None);
        assert_eq!(redirect("postgres://a/c?sslmode=verify-full", 7), None);
    }

    #[tokio::test]
    async fn what_is_cut_is_silent_and_goes_on_where_it_was() {
        let echo = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("postgres://{}/x", echo.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = echo.accept().await.unwrap();
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        });
        let (relay, through) = Relay::to(&url).await.unwrap().unwrap();
        let address = through
            .trim_start_matches("postgres://")
            .trim_end_matches("/x");
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut answer = [0; 2];
        client.write_all(b"ab").await.unwrap();
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"ab");

        relay.cut(true);
        client.write_all(b"cd").await.unwrap();
        let silence = std::time::Duration::from_millis(100);
        let heard = tokio::time::timeout(silence, client.read_exact(&mut answer)).await;
        assert!(heard.is_err(), "nothing comes through");

        relay.cut(false);
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"cd");
    }
}
