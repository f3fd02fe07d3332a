//! The control socket: how it is bound, and what one client may take of the daemon.

use crate::{
    Error,
    authority::AnyAuthority,
    reserve::{self, Refill},
};
use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tonic::transport::{
    Server,
    server::{Connected, UdsConnectInfo},
};

const MAX_CONNECTIONS: usize = 64;
const MAX_STREAMS_PER_CONNECTION: u32 = 32;
const MAX_HEADER_BYTES: u32 = 16 << 10;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams that a client reset before they were served; more end the connection (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 20;
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A server with the limits of every daemon.
pub(crate) fn builder(rpc_timeout: Duration) -> Server {
    Server::builder()
        .timeout(rpc_timeout)
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
}

/// Listens at `path` with mode 0660. The socket is bound under another name and renamed, so that a client never meets
/// one with the wrong mode, and a file left by a killed instance is simply replaced. The caller holds the instance lock.
pub(crate) fn bind(path: &Path) -> Result<UnixListener, Error> {
    let temporary = suffixed(path, &format!(".tmp.{}", std::process::id()));
    remove_leftovers(path);
    let failed = |operation| {
        let path = path.to_owned();
        move |source| Error::Io {
            operation,
            path,
            source,
        }
    };
    let listener = UnixListener::bind(&temporary).map_err(failed("bind control socket"))?;
    fs::set_permissions(&temporary, PermissionsExt::from_mode(0o660))
        .map_err(failed("set mode of control socket"))?;
    fs::rename(&temporary, path).map_err(failed("publish control socket"))?;
    Ok(listener)
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Removes half-bound sockets of instances that were killed.
fn remove_leftovers(path: &Path) {
    let (Some(dir), Some(name)) = (
        path.parent(),
        path.file_name().and_then(|name| name.to_str()),
    ) else {
        return;
    };
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    let prefix = format!("{name}.tmp.");
    for entry in entries.flatten() {
        if entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(&prefix))
        {
            // A leftover that stays does no harm.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Accepts connections and hands them to the server until nobody takes them any more. A client beyond the limit is
/// turned away at once instead of waiting without an answer.
pub(crate) async fn accept(
    listener: UnixListener,
    connections: mpsc::Sender<io::Result<Connection>>,
) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors: some were held for this.
                if reserve::release(1) {
                    continue;
                }
                // Clients can wait, the data plane goes on.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        match Arc::clone(&free).try_acquire_owned() {
            Ok(permit) => {
                if connections
                    .send(Ok(Connection {
                        stream,
                        incoming: AnyAuthority::new(),
                        _permit: permit,
                        _refill: Refill,
                    }))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Err(_) => tracing::debug!(
                limit = MAX_CONNECTIONS,
                "too many connections, one turned away"
            ),
        }
    }
}

/// A client's connection, counted until it is closed.
pub(crate) struct Connection {
    stream: UnixStream,
    incoming: AnyAuthority,
    _permit: OwnedSemaphorePermit,
    /// Behind the stream, so that its descriptor is free by then.
    _refill: Refill,
}

impl Connected for Connection {
    type ConnectInfo = UdsConnectInfo;

    fn connect_info(&self) -> UdsConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Connection {
            stream, incoming, ..
        } = self.get_mut();
        incoming.poll_read(stream, cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
