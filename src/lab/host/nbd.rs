//! A small NBD server: every disk of a machine is an export, so that programs that are not ours write to it.
//!
//! Fixed newstyle handshake, simple replies, one thread per connection, one request at a time on it. Clients
//! that want parallelism open several connections (CAN_MULTI_CONN: a flush on one covers all).
//!
//! ```text
//! server: NBDMAGIC IHAVEOPT flags:u16            client: flags:u32
//! client: IHAVEOPT option:u32 len:u32 data       server: REPLYMAGIC option:u32 type:u32 len:u32 data   (repeated)
//! client: magic:u32 flags:u16 type:u16 cookie:u64 offset:u64 len:u32 [data]   server: magic:u32 error:u32 cookie:u64 [data]
//! ```
//! All fields big-endian (github.com/NetworkBlockDevice/nbd, doc/proto.md).

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What the server serves: one virtual disk of a running machine.
pub(super) trait Export: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Fills `buf` from `offset`.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes a range read as zeros.
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes everything written durable.
    fn flush(&self) -> io::Result<()>;
}

/// Finds exports by name.
pub(super) trait Exports: Send + Sync {
    /// Names, in order.
    fn names(&self) -> Vec<String>;
    /// One export; `None` if there is no such disk, `Err` if the machine does not run.
    fn open(&self, name: &str) -> Result<Option<Arc<dyn Export>>, String>;
}

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

const HANDSHAKE_FIXED_NEWSTYLE: u16 = 1;
const HANDSHAKE_NO_ZEROES: u16 = 2;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 0x8000_0001;
const REP_ERR_POLICY: u32 = 0x8000_0002;
const REP_ERR_INVALID: u32 = 0x8000_0003;
const REP_ERR_UNKNOWN: u32 = 0x8000_0006;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN.
const TRANSMISSION: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const CMD_WRITE_ZEROES: u16 = 6;
const CMD_FLAG_FUA: u16 = 1;

const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ESHUTDOWN: u32 = 108;

/// Longest data of one option: names are at most 4096 bytes.
const MAX_OPTION: u32 = 8192;
/// Longest payload of one request, as announced.
const MAX_PAYLOAD: u32 = 32 << 20;

/// The server of one machine: a socket, its accept thread and the connections.
pub(super) struct Server {
    connections: Arc<Connections>,
    path: std::path::PathBuf,
}

#[derive(Default)]
struct Connections {
    closed: AtomicBool,
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, UnixStream>>,
}

impl Server {
    /// Listens on `path` (an old socket file is replaced) until the process ends.
    pub(super) fn listen(path: &Path, exports: Arc<dyn Exports>) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let named = |e: io::Error| io::Error::new(e.kind(), format!("listen on {}: {e}", path.display()));
        let listener = UnixListener::bind(path).map_err(named)?;
        let connections = Arc::new(Connections::default());
        let accepted = Arc::clone(&connections);
        std::thread::Builder::new().name("nbd-accept".into()).spawn(move || {
            for stream in listener.incoming() {
                if accepted.closed.load(Ordering::Relaxed) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                accepted.serve(stream, Arc::clone(&exports));
            }
        })?;
        Ok(Self { connections, path: path.to_owned() })
    }

    /// Cuts every connection: the machine was turned off.
    pub(super) fn disconnect(&self) {
        self.connections.cut();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.connections.closed.store(true, Ordering::Relaxed);
        self.disconnect();
        // Wakes the accept thread, which sees that it is over.
        drop(UnixStream::connect(&self.path));
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "remove NBD socket");
        }
    }
}

impl Connections {
    fn cut(&self) {
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).values() {
            // Fails only if the peer has gone already.
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    fn serve(self: &Arc<Self>, stream: UnixStream, exports: Arc<dyn Exports>) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let Ok(registered) = stream.try_clone() else { return };
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(id, registered);
        let all = Arc::clone(self);
        let thread = std::thread::Builder::new().name("nbd".into()).spawn(move || {
            if let Err(error) = session(&stream, &*exports) {
                tracing::debug!(%error, "NBD connection ended");
            }
            all.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        });
        if thread.is_err() {
            self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
    }
}

/// One connection, from greeting to disconnect.
fn session(stream: &UnixStream, exports: &dyn Exports) -> io::Result<()> {
    let mut input = BufReader::with_capacity(64 << 10, stream);
    let mut output = stream;
    let mut greeting = Vec::with_capacity(18);
    greeting.extend(MAGIC.to_be_bytes());
    greeting.extend(OPTION_MAGIC.to_be_bytes());
    greeting.extend((HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES).to_be_bytes());
    output.write_all(&greeting)?;
    let flags = read_u32(&mut input)?;
    let no_zeroes = flags & u32::from(HANDSHAKE_NO_ZEROES) != 0;
    match negotiate(&mut input, &mut output, exports, no_zeroes)? {
        Some(export) => transmit(&mut input, &mut output, &*export),
        None => Ok(()),
    }
}

/// Options until one of them chooses an export; `None` when the client leaves.
fn negotiate(
    input: &mut impl Read,
    output: &mut impl Write,
    exports: &dyn Exports,
    no_zeroes: bool,
) -> io::Result<Option<Arc<dyn Export>>> {
    loop {
        if read_u64(input)? != OPTION_MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "option without its magic"));
        }
        let option = read_u32(input)?;
        let len = read_u32(input)?;
        if len > MAX_OPTION {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "option too long"));
        }
        let mut data = vec![0; len as usize];
        input.read_exact(&mut data)?;
        match option {
            OPT_EXPORT_NAME => {
                // No way to refuse but to hang up.
                let name = String::from_utf8_lossy(&data);
                let Ok(Some(export)) = find(exports, &name) else { return Ok(None) };
                let mut answer = export.size().to_be_bytes().to_vec();
                answer.extend(TRANSMISSION.to_be_bytes());
                if !no_zeroes {
                    answer.extend([0; 124]);
                }
                output.write_all(&answer)?;
                return Ok(Some(export));
            }
            OPT_ABORT => {
                reply(output, option, REP_ACK, &[])?;
                return Ok(None);
            }
            OPT_LIST if data.is_empty() => {
                for name in exports.names() {
                    let mut body = u32::try_from(name.len()).unwrap_or(0).to_be_bytes().to_vec();
                    body.extend(name.as_bytes());
                    reply(output, option, REP_SERVER, &body)?;
                }
                reply(output, option, REP_ACK, &[])?;
            }
            OPT_LIST => reply(output, option, REP_ERR_INVALID, b"LIST takes no data")?,
            OPT_INFO | OPT_GO => {
                if let Some(export) = info(output, option, &data, exports)?
                    && option == OPT_GO
                {
                    return Ok(Some(export));
                }
            }
            _ => reply(output, option, REP_ERR_UNSUP, b"not offered")?,
        }
    }
}

/// The empty name is the first disk.
fn find(exports: &dyn Exports, name: &str) -> Result<Option<Arc<dyn Export>>, String> {
    if !name.is_empty() {
        return exports.open(name);
    }
    match exports.names().first() {
        Some(first) => exports.open(first),
        None => Ok(None),
    }
}

/// Answers INFO and GO: `u32 name length, name, u16 count, u16 wanted infos`.
fn info(
    output: &mut impl Write,
    option: u32,
    data: &[u8],
    exports: &dyn Exports,
) -> io::Result<Option<Arc<dyn Export>>> {
    let name = data.split_first_chunk::<4>().and_then(|(len, rest)| {
        let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
        rest.get(..len).filter(|_| rest.len() >= len.saturating_add(2))
    });
    let Some(name) = name else {
        reply(output, option, REP_ERR_INVALID, b"malformed")?;
        return Ok(None);
    };
    let export = match find(exports, &String::from_utf8_lossy(name)) {
        Ok(Some(export)) => export,
        Ok(None) => {
            reply(output, option, REP_ERR_UNKNOWN, b"no such disk")?;
            return Ok(None);
        }
        Err(reason) => {
            reply(output, option, REP_ERR_POLICY, reason.as_bytes())?;
            return Ok(None);
        }
    };
    let mut body = INFO_EXPORT.to_be_bytes().to_vec();
    body.extend(export.size().to_be_bytes());
    body.extend(TRANSMISSION.to_be_bytes());
    reply(output, option, REP_INFO, &body)?;
    let mut body = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [1_u32, 64 << 10, MAX_PAYLOAD] {
        body.extend(size.to_be_bytes());
    }
    reply(output, option, REP_INFO, &body)?;
    reply(output, option, REP_ACK, &[])?;
    Ok(Some(export))
}

fn reply(output: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut out = Vec::with_capacity(20 + data.len());
    out.extend(REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
    out.extend(data);
    output.write_all(&out)
}

struct Request {
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    len: u32,
}

fn read_request(input: &mut impl Read) -> io::Result<Option<Request>> {
    let mut magic = [0; 4];
    match input.read_exact(&mut magic) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    if u32::from_be_bytes(magic) != REQUEST_MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "request without its magic"));
    }
    Ok(Some(Request {
        flags: read_u16(input)?,
        command: read_u16(input)?,
        cookie: read_u64(input)?,
        offset: read_u64(input)?,
        len: read_u32(input)?,
    }))
}

/// Requests until the client disconnects.
fn transmit(input: &mut impl Read, output: &mut impl Write, export: &dyn Export) -> io::Result<()> {
    // 16 bytes of reply in front of the data, so that a read is answered by one write.
    let mut buf = vec![0; 16];
    while let Some(request) = read_request(input)? {
        if request.command == CMD_DISC {
            return Ok(());
        }
        let carries = matches!(request.command, CMD_READ | CMD_WRITE);
        if carries && request.len > MAX_PAYLOAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "payload too long"));
        }
        let len = if carries { request.len as usize } else { 0 };
        buf.resize(16 + len, 0);
        let (head, data) = buf.split_at_mut(16);
        if request.command == CMD_WRITE {
            input.read_exact(data)?;
        }
        let error = execute(&request, data, export);
        let (magic, rest) = head.split_at_mut(4);
        let (code, cookie) = rest.split_at_mut(4);
        magic.copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        code.copy_from_slice(&error.to_be_bytes());
        cookie.copy_from_slice(&request.cookie.to_be_bytes());
        let with_data = request.command == CMD_READ && error == 0;
        output.write_all(if with_data { &buf } else { buf.get(..16).unwrap_or_default() })?;
    }
    Ok(())
}

/// Runs one request; 0 or an NBD error number.
fn execute(request: &Request, data: &mut [u8], export: &dyn Export) -> u32 {
    let inside = request.offset.checked_add(u64::from(request.len)).is_some_and(|end| end <= export.size());
    let writes = matches!(request.command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES);
    let done = match request.command {
        CMD_FLUSH => export.flush(),
        _ if !inside => return if writes { ENOSPC } else { EINVAL },
        CMD_READ => export.read(request.offset, data),
        CMD_WRITE => export.write(request.offset, data),
        // Trimmed ranges read as zeros afterwards: more than asked, and the same on every replica.
        CMD_TRIM | CMD_WRITE_ZEROES => export.write_zeroes(request.offset, u64::from(request.len)),
        _ => return EINVAL,
    };
    let done =
        done.and_then(|()| if writes && request.flags & CMD_FLAG_FUA != 0 { export.flush() } else { Ok(()) });
    match done {
        Ok(()) => 0,
        Err(error) => match error.kind() {
            io::ErrorKind::StorageFull => ENOSPC,
            io::ErrorKind::NotConnected => ESHUTDOWN,
            io::ErrorKind::InvalidInput => EINVAL,
            _ => {
                tracing::warn!(%error, command = request.command, offset = request.offset, "NBD request failed");
                EIO
            }
        },
    }
}

fn read_u16(input: &mut impl Read) -> io::Result<u16> {
    let mut buf = [0; 2];
    input.read_exact(&mut buf)?;
    Ok(u16::from_be_bytes(buf))
}

fn read_u32(input: &mut impl Read) -> io::Result<u32> {
    let mut buf = [0; 4];
    input.read_exact(&mut buf)?;
    Ok(u32::from_be_bytes(buf))
}

fn read_u64(input: &mut impl Read) -> io::Result<u64> {
    let mut buf = [0; 8];
    input.read_exact(&mut buf)?;
    Ok(u64::from_be_bytes(buf))
}
