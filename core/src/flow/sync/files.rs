//! Downloads: where files are, and one file on its way (fact sheet 07.16).

use super::{FetchId, Fetched, MediaRequest};
use crate::{
    flow::{
        Context,
        query::{Answer, Query, iq},
    },
    media::{Expected, MediaKind, MediaReader},
    proto::{e2e::HistorySyncNotification, sync::ExternalBlobReference},
    state::Micros,
    wire::node::Node,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use zeroize::Zeroizing;

/// Where files are if the service does not say.
const HOST: &str = "mmg.whatsapp.net";

/// Hosts that are tried.
const HOSTS: usize = 8;

/// Longest path.
const PATH_BYTES: usize = 2048;

/// A download that brings nothing for so long is given up.
const PATIENCE: Micros = Micros::from_secs(60);

/// What the service says about hosts holds for so long at most.
const TTL: Micros = Micros::from_secs(6 * 3600);

/// Media hosts, and numbers for downloads.
#[derive(Debug, Default)]
pub(super) struct Files {
    hosts: Option<(Vec<String>, Micros)>,
    asked: bool,
    wanted: bool,
    next: u64,
}

impl Files {
    /// Asks for the hosts, if somebody needs them.
    pub(super) fn advance(&mut self, cx: &mut Context, online: bool) {
        if self
            .hosts
            .as_ref()
            .is_some_and(|(_, until)| *until <= cx.now.mono)
        {
            self.hosts = None;
        }
        if online && self.wanted && self.hosts.is_none() && !self.asked {
            self.asked = true;
            cx.ask(
                iq("w:m", "set").child(Node::new("media_conn")),
                Query::MediaHosts,
            );
        }
    }

    pub(super) fn closed(&mut self) {
        self.asked = false;
    }

    pub(super) fn hosts_answered(&mut self, cx: &Context, answer: &Answer) {
        self.asked = false;
        let media = match answer {
            Answer::Lost => return,
            Answer::Result(stanza) => stanza.find("media_conn").cloned(),
            Answer::Error(_) | Answer::TimedOut => None,
        };
        let nodes = media.as_ref().map_or(&[][..], Node::nodes);
        let named = nodes.iter().filter(|node| node.tag() == "host");
        let mut hosts: Vec<String> = named
            .filter_map(|host| host.get_string("hostname"))
            .filter(|name| is_host(name))
            .take(HOSTS)
            .collect();
        if hosts.is_empty() {
            hosts.push(HOST.into());
        }
        let ttl = media.and_then(|media| media.get_u64("ttl")).unwrap_or(300);
        let ttl = Micros(ttl.saturating_mul(1_000_000)).min(TTL);
        self.hosts = Some((hosts, cx.now.mono.plus(ttl.max(PATIENCE))));
        self.wanted = false;
    }

    fn hosts(&mut self) -> Option<Vec<String>> {
        let hosts = self.hosts.as_ref().map(|(hosts, _)| hosts.clone());
        self.wanted |= hosts.is_none();
        hosts
    }

    fn id(&mut self) -> FetchId {
        self.next += 1;
        FetchId(self.next)
    }
}

/// A name and perhaps a port: nothing that could be read as a path or as somebody's password.
fn is_host(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'))
}

/// What is said about a file where it is announced.
#[derive(Clone)]
pub(super) struct FileRef {
    pub(super) key: Zeroizing<[u8; 32]>,
    pub(super) path: String,
    pub(super) enc_sha256: Option<[u8; 32]>,
    pub(super) sha256: Option<[u8; 32]>,
    /// Bytes, if that is said.
    pub(super) length: Option<u64>,
}

impl FileRef {
    fn new(
        key: Option<&Vec<u8>>,
        path: Option<&String>,
        enc_sha256: Option<&Vec<u8>>,
        sha256: Option<&Vec<u8>>,
        length: Option<u64>,
    ) -> Option<Self> {
        let hash =
            |bytes: Option<&Vec<u8>>| bytes.and_then(|bytes| bytes.as_slice().try_into().ok());
        let path = path.filter(|path| {
            path.starts_with('/')
                && path.len() <= PATH_BYTES
                && path.bytes().all(|b| b.is_ascii_graphic())
        })?;
        Some(Self {
            key: Zeroizing::new(key?.as_slice().try_into().ok()?),
            path: path.clone(),
            enc_sha256: hash(enc_sha256),
            sha256: hash(sha256),
            length,
        })
    }

    pub(super) fn expected(&self, most: u64) -> Expected {
        Expected {
            enc_sha256: self.enc_sha256,
            sha256: self.sha256,
            most,
        }
    }

    pub(super) fn request(&self, kind: MediaKind, hosts: Vec<String>) -> MediaRequest {
        let mut path = self.path.clone();
        path.push(if path.contains('?') { '&' } else { '?' });
        if let Some(hash) = &self.enc_sha256 {
            path.push_str("hash=");
            path.push_str(&URL_SAFE_NO_PAD.encode(hash));
            path.push('&');
        }
        path.push_str("mms-type=");
        path.push_str(kind.mms_type());
        path.push_str("&__wa-mms=");
        MediaRequest { hosts, path, kind }
    }
}

impl std::fmt::Debug for FileRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileRef({:?} bytes)", self.length)
    }
}

impl From<ExternalBlobReference> for Option<FileRef> {
    fn from(reference: ExternalBlobReference) -> Self {
        FileRef::new(
            reference.media_key.as_ref(),
            reference.direct_path.as_ref(),
            reference.file_enc_sha256.as_ref(),
            reference.file_sha256.as_ref(),
            reference.file_size_bytes,
        )
    }
}

impl From<&HistorySyncNotification> for Option<FileRef> {
    fn from(notification: &HistorySyncNotification) -> Self {
        FileRef::new(
            notification.media_key.as_ref(),
            notification.direct_path.as_ref(),
            notification.file_enc_sha256.as_ref(),
            notification.file_sha256.as_ref(),
            notification.file_length,
        )
    }
}

/// A download of a file under a number, with its deadline.
#[derive(Debug, Default)]
pub(super) struct Fetch {
    id: Option<FetchId>,
    deadline: Option<Micros>,
}

impl Fetch {
    /// Starts it, unless it runs or nobody knows yet where files are.
    pub(super) fn start(
        &mut self,
        cx: &mut Context,
        files: &mut Files,
        kind: MediaKind,
        file: &FileRef,
    ) {
        if self.id.is_some() {
            return;
        }
        let Some(hosts) = files.hosts() else { return };
        let id = files.id();
        self.id = Some(id);
        self.heard(cx);
        cx.fetch(id, file.request(kind, hosts));
    }

    pub(super) fn is(&self, id: FetchId) -> bool {
        self.id == Some(id)
    }

    pub(super) const fn runs(&self) -> bool {
        self.id.is_some()
    }

    /// Asks for the next bytes.
    pub(super) fn more(&mut self, cx: &mut Context) {
        if let Some(id) = self.id {
            self.heard(cx);
            cx.fetch_more(id);
        }
    }

    /// Something has come: patience begins anew.
    fn heard(&mut self, cx: &Context) {
        self.deadline = Some(cx.now.mono.plus(PATIENCE));
    }

    /// Nothing is waited for while what has come is worked on.
    pub(super) fn pause(&mut self) {
        self.deadline = None;
    }

    pub(super) const fn deadline(&self) -> Option<Micros> {
        self.deadline
    }

    pub(super) fn is_late(&self, cx: &Context) -> bool {
        self.deadline.is_some_and(|at| at <= cx.now.mono)
    }

    /// It is over: by itself, or because nobody wants it any more.
    pub(super) fn end(&mut self, cx: &mut Context, by_itself: bool) {
        self.deadline = None;
        if let Some(id) = self.id.take().filter(|_| !by_itself) {
            cx.stop_fetch(id);
        }
    }
}

/// How a download of a whole file is getting on.
pub(super) enum Progress {
    More,
    Done(Bytes),
    Failed(&'static str),
}

/// A file that is kept in memory until it is whole.
#[derive(Debug)]
pub(super) struct Download {
    kind: MediaKind,
    file: FileRef,
    reader: Option<MediaReader>,
    plain: Vec<u8>,
    fetch: Fetch,
}

impl Download {
    /// `None` if the reference does not say enough, or too large a size.
    pub(super) fn new(kind: MediaKind, file: &Option<FileRef>, most: u64) -> Option<Self> {
        let file = file
            .clone()
            .filter(|file| file.length.is_none_or(|length| length <= most))?;
        Some(Self {
            kind,
            reader: Some(MediaReader::new(kind, &file.key, file.expected(most))),
            file,
            plain: Vec::new(),
            fetch: Fetch::default(),
        })
    }

    pub(super) fn start(&mut self, cx: &mut Context, files: &mut Files) {
        self.fetch.start(cx, files, self.kind, &self.file);
    }

    pub(super) fn is(&self, id: FetchId) -> bool {
        self.fetch.is(id)
    }

    pub(super) const fn deadline(&self) -> Option<Micros> {
        self.fetch.deadline()
    }

    pub(super) fn is_late(&self, cx: &Context) -> bool {
        self.fetch.is_late(cx)
    }

    pub(super) fn stop(mut self, cx: &mut Context) {
        self.fetch.end(cx, false);
    }

    pub(super) fn fetched(&mut self, cx: &mut Context, what: Fetched<'_>) -> Progress {
        match what {
            Fetched::Chunk(bytes) => {
                let read = match &mut self.reader {
                    Some(reader) => reader.push(bytes, &mut self.plain),
                    None => Ok(()),
                };
                if read.is_err() {
                    cx.stats.sync.bad_files += 1;
                    self.fetch.end(cx, false);
                    return Progress::Failed("a file that is too long");
                }
                self.fetch.more(cx);
                Progress::More
            }
            Fetched::Done => {
                self.fetch.end(cx, true);
                let finished = self
                    .reader
                    .take()
                    .map(|reader| reader.finish(&mut self.plain));
                match finished {
                    Some(Ok(())) => Progress::Done(std::mem::take(&mut self.plain).into()),
                    _ => {
                        cx.stats.sync.bad_files += 1;
                        Progress::Failed("a file that is not what was announced")
                    }
                }
            }
            Fetched::Failed { .. } => {
                cx.stats.sync.failed_fetches += 1;
                self.fetch.end(cx, true);
                Progress::Failed("a file that cannot be had")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_what_hosts_expect_and_nothing_else() {
        let reference = |path: &str| ExternalBlobReference {
            media_key: Some(vec![1; 32]),
            direct_path: Some(path.into()),
            file_enc_sha256: Some(vec![0xff; 32]),
            ..Default::default()
        };
        let file: Option<FileRef> = reference("/v/t62?ccb=1").into();
        let request = file.unwrap().request(MediaKind::AppState, vec!["a".into()]);
        assert_eq!(
            request.path,
            format!(
                "/v/t62?ccb=1&hash={}8&mms-type=md-app-state&__wa-mms=",
                "_".repeat(42)
            )
        );
        assert!(!format!("{request:?}").contains("t62"));
        for path in ["", "v/t62", "/a b", "/a\r\nHost: b", "/\u{e9}"] {
            let file: Option<FileRef> = reference(path).into();
            assert!(file.is_none(), "{path:?}");
        }
        assert!(is_host("mmg.whatsapp.net") && is_host("127.0.0.1:80") && is_host("[::1]:80"));
        for name in ["", "a/b", "a@b", "a b", "a\r\n", "https://a"] {
            assert!(!is_host(name), "{name:?}");
        }
    }
}
