//! The calls of C. Each unsafe block rests on two facts that hold everywhere here: the function pointers have the
//! signatures of `rados/librados.h` and `rbd/librbd.h`, which are a stable ABI (`librados.so.2`, `librbd.so.1`),
//! and the libraries are never unloaded. Both libraries may be called from many threads at once.

#![allow(unsafe_code, reason = "C libraries are called here, and nowhere else")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{null, null_mut};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::{Access, CephError};

type Handle = *mut c_void;
type Text = *const c_char;
type DiffCallback = extern "C" fn(u64, usize, c_int, *mut c_void) -> c_int;

/// Declares the table of functions and how it is filled.
macro_rules! functions {
    ($($library:ident { $($name:ident: fn($($argument:ty),*) -> $result:ty;)* })*) => {
        struct Functions { $($($name: unsafe extern "C" fn($($argument),*) -> $result,)*)* }

        impl Functions {
            fn load(rados: &libloading::Library, rbd: &libloading::Library) -> Result<Self, libloading::Error> {
                let libraries = Libraries { rados, rbd };
                // SAFETY: the types are those of the headers.
                Ok(Self { $($($name: unsafe { *libraries.$library.get(stringify!($name).as_bytes())? },)*)* })
            }
        }
    };
}

struct Libraries<'l> {
    rados: &'l libloading::Library,
    rbd: &'l libloading::Library,
}

functions! {
    rados {
        rados_create2: fn(*mut Handle, Text, Text, u64) -> c_int;
        rados_conf_read_file: fn(Handle, Text) -> c_int;
        rados_conf_parse_env: fn(Handle, Text) -> c_int;
        rados_conf_set: fn(Handle, Text, Text) -> c_int;
        rados_connect: fn(Handle) -> c_int;
        rados_shutdown: fn(Handle) -> ();
        rados_ioctx_create: fn(Handle, Text, *mut Handle) -> c_int;
        rados_ioctx_set_namespace: fn(Handle, Text) -> ();
        rados_ioctx_destroy: fn(Handle) -> ();
        rados_version: fn(*mut c_int, *mut c_int, *mut c_int) -> ();
    }
    rbd {
        rbd_open: fn(Handle, Text, *mut Handle, Text) -> c_int;
        rbd_open_read_only: fn(Handle, Text, *mut Handle, Text) -> c_int;
        rbd_close: fn(Handle) -> c_int;
        rbd_get_size: fn(Handle, *mut u64) -> c_int;
        rbd_read: fn(Handle, u64, usize, *mut c_char) -> isize;
        rbd_write: fn(Handle, u64, usize, Text) -> isize;
        rbd_flush: fn(Handle) -> c_int;
        rbd_diff_iterate2: fn(Handle, Text, u64, u64, u8, u8, DiffCallback, *mut c_void) -> c_int;
        rbd_version: fn(*mut c_int, *mut c_int, *mut c_int) -> ();
    }
}

static FUNCTIONS: OnceLock<Result<Functions, String>> = OnceLock::new();

/// The functions, loaded by the first who asks.
fn functions() -> Result<&'static Functions, CephError> {
    let unavailable = |reason: &String| CephError {
        call: "loading librados.so.2 and librbd.so.1",
        source: io::Error::new(io::ErrorKind::Unsupported, reason.clone()),
    };
    FUNCTIONS.get_or_init(|| load().map_err(|error| error.to_string())).as_ref().map_err(unavailable)
}

fn load() -> Result<Functions, libloading::Error> {
    // SAFETY: these libraries have no initialisers that need anything of us.
    let rados = unsafe { libloading::Library::new("librados.so.2")? };
    // SAFETY: as above.
    let rbd = unsafe { libloading::Library::new("librbd.so.1")? };
    let functions = Functions::load(&rados, &rbd)?;
    // They have threads of their own: they stay until the process ends.
    std::mem::forget((rados, rbd));
    Ok(functions)
}

/// Returns the versions of librados and librbd (of their interfaces), or why they cannot be used.
pub fn available() -> Result<String, CephError> {
    let functions = functions()?;
    let version = |call: unsafe extern "C" fn(*mut c_int, *mut c_int, *mut c_int)| {
        let (mut major, mut minor, mut extra) = (0, 0, 0);
        // SAFETY: it writes three integers.
        unsafe { call(&raw mut major, &raw mut minor, &raw mut extra) };
        format!("{major}.{minor}.{extra}")
    };
    Ok(format!("librados {}, librbd {}", version(functions.rados_version), version(functions.rbd_version)))
}

/// Turns a result below zero, which is a negated errno, into an error.
fn check(call: &'static str, result: isize) -> Result<usize, CephError> {
    usize::try_from(result).map_err(|_| {
        let code = i32::try_from(result.saturating_neg()).unwrap_or(i32::MAX);
        CephError { call, source: io::Error::from_raw_os_error(code) }
    })
}

fn check_int(call: &'static str, result: c_int) -> Result<(), CephError> {
    check(call, result as isize).map(drop)
}

fn text(call: &'static str, bytes: impl Into<Vec<u8>>) -> Result<CString, CephError> {
    CString::new(bytes).map_err(|error| CephError { call, source: error.into() })
}

fn pointer(text: Option<&CString>) -> Text {
    text.map_or(null(), |text| text.as_ptr())
}

/// A connection.
struct Connection {
    functions: &'static Functions,
    rados: Handle,
}

// SAFETY: librados may be used from many threads at once; the handle is only given to it.
unsafe impl Send for Connection {}
// SAFETY: as above.
unsafe impl Sync for Connection {}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: the handle was made by rados_create2 and is not used after; images hold an Arc of this.
        unsafe { (self.functions.rados_shutdown)(self.rados) }
    }
}

/// A cluster that answers.
#[derive(Clone)]
pub struct Cluster(Arc<Connection>);

impl std::fmt::Debug for Cluster {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Cluster")
    }
}

impl Cluster {
    /// Connects. Every request, this one included, fails when it takes longer than `limit`.
    pub fn connect(access: &Access, limit: Duration) -> Result<Self, CephError> {
        let functions = functions()?;
        let cluster = text("rados_create2", access.cluster.as_deref().unwrap_or("ceph"))?;
        let user = access.user.as_deref().unwrap_or("admin");
        let name = text("rados_create2", format!("client.{user}"))?;
        let mut rados = null_mut();
        // SAFETY: both texts end with a zero byte; the handle is written on success.
        let made = unsafe { (functions.rados_create2)(&raw mut rados, cluster.as_ptr(), name.as_ptr(), 0) };
        check_int("rados_create2", made)?;
        let connection = Connection { functions, rados };
        connection.configure(access, limit)?;
        // SAFETY: the handle is valid and not connected.
        check_int("rados_connect", unsafe { (functions.rados_connect)(rados) })?;
        Ok(Self(Arc::new(connection)))
    }

    /// Opens an image, or a snapshot of it, for reading.
    pub fn open(&self, pool: &str, image: &str, snapshot: Option<&str>) -> Result<Image, CephError> {
        self.open_as(self.0.functions.rbd_open_read_only, "rbd_open_read_only", [pool, image], snapshot)
    }

    /// Opens an image for writing.
    pub fn open_writable(&self, pool: &str, image: &str) -> Result<Image, CephError> {
        self.open_as(self.0.functions.rbd_open, "rbd_open", [pool, image], None)
    }

    fn open_as(
        &self,
        function: unsafe extern "C" fn(Handle, Text, *mut Handle, Text) -> c_int,
        call: &'static str,
        [pool, image]: [&str; 2],
        snapshot: Option<&str>,
    ) -> Result<Image, CephError> {
        let functions = self.0.functions;
        let (pool, namespace) = match pool.split_once('/') {
            Some((pool, namespace)) => (pool, Some(text(call, namespace)?)),
            None => (pool, None),
        };
        let (pool, image) = (text("rados_ioctx_create", pool)?, text(call, image)?);
        let snapshot = snapshot.map(|snapshot| text(call, snapshot)).transpose()?;
        let mut context = null_mut();
        // SAFETY: the cluster is connected, the text ends with a zero byte, the handle is written on success.
        let made = unsafe { (functions.rados_ioctx_create)(self.0.rados, pool.as_ptr(), &raw mut context) };
        check_int("rados_ioctx_create", made)?;
        let pool = PoolContext { connection: Arc::clone(&self.0), context };
        if let Some(namespace) = namespace {
            // SAFETY: the context is valid, the text ends with a zero byte and is copied.
            unsafe { (functions.rados_ioctx_set_namespace)(context, namespace.as_ptr()) };
        }
        let mut handle = null_mut();
        // SAFETY: the context is valid; texts end with a zero byte; a null snapshot is the image itself.
        let opened =
            unsafe { function(context, image.as_ptr(), &raw mut handle, pointer(snapshot.as_ref())) };
        check_int(call, opened)?;
        Ok(Image { handle, pool })
    }
}

impl Connection {
    fn configure(&self, access: &Access, limit: Duration) -> Result<(), CephError> {
        let call = "rados_conf_read_file";
        let conf = access.conf.as_ref().map(|path| text(call, path.as_os_str().as_bytes())).transpose()?;
        // SAFETY: the handle is valid, the text ends with a zero byte; null means the usual places.
        let read = unsafe { (self.functions.rados_conf_read_file)(self.rados, pointer(conf.as_ref())) };
        match check_int(call, read) {
            // Without a file all may be in CEPH_ARGS.
            Err(error) if error.is_missing() && conf.is_none() => {}
            other => other?,
        }
        // SAFETY: the handle is valid; null means CEPH_ARGS.
        check_int("rados_conf_parse_env", unsafe {
            (self.functions.rados_conf_parse_env)(self.rados, null())
        })?;
        let seconds = limit.as_secs().max(1).to_string();
        for (option, value) in [
            ("client_mount_timeout", seconds.as_str()),
            ("rados_mon_op_timeout", &seconds),
            ("rados_osd_op_timeout", &seconds),
            // All is read or written once.
            ("rbd_cache", "false"),
            // Errors are returned; the libraries would write them to standard error as well.
            ("log_to_stderr", "false"),
            ("err_to_stderr", "false"),
        ] {
            let (name, value) = (text("rados_conf_set", option)?, text("rados_conf_set", value)?);
            // SAFETY: the handle is valid, the texts end with a zero byte.
            let set = unsafe { (self.functions.rados_conf_set)(self.rados, name.as_ptr(), value.as_ptr()) };
            check_int("rados_conf_set", set)?;
        }
        Ok(())
    }
}

/// A pool of a connection.
struct PoolContext {
    connection: Arc<Connection>,
    context: Handle,
}

// SAFETY: as for the connection.
unsafe impl Send for PoolContext {}
// SAFETY: as for the connection.
unsafe impl Sync for PoolContext {}

impl Drop for PoolContext {
    fn drop(&mut self) {
        // SAFETY: the context is valid and not used after: the image in it was closed before.
        unsafe { (self.connection.functions.rados_ioctx_destroy)(self.context) }
    }
}

/// An open image. Many threads may read and write at once.
pub struct Image {
    handle: Handle,
    // Dropped after the image was closed in `drop`.
    pool: PoolContext,
}

// SAFETY: librbd may be used from many threads at once; the handle is only given to it.
unsafe impl Send for Image {}
// SAFETY: as above.
unsafe impl Sync for Image {}

impl std::fmt::Debug for Image {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Image")
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // SAFETY: the handle was opened and is not used after.
        unsafe { (self.functions().rbd_close)(self.handle) };
    }
}

impl Image {
    fn functions(&self) -> &'static Functions {
        self.pool.connection.functions
    }

    /// Returns the size in bytes.
    pub fn size_bytes(&self) -> Result<u64, CephError> {
        let mut size = 0;
        // SAFETY: the image is open; one integer is written.
        check_int("rbd_get_size", unsafe { (self.functions().rbd_get_size)(self.handle, &raw mut size) })?;
        Ok(size)
    }

    /// Fills `buf` from `offset`; short only where the image ends, which is an error here.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), CephError> {
        let mut done = 0;
        while done < buf.len() {
            let rest = &mut buf[done..];
            // SAFETY: the image is open; at most `rest.len()` bytes are written to `rest`.
            let read = unsafe {
                let start = rest.as_mut_ptr().cast();
                (self.functions().rbd_read)(self.handle, offset + done as u64, rest.len(), start)
            };
            match check("rbd_read", read)? {
                0 => {
                    let source = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Err(CephError { call: "rbd_read", source });
                }
                count => done += count,
            }
        }
        Ok(())
    }

    /// Writes all of `data` at `offset`.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), CephError> {
        let mut done = 0;
        while done < data.len() {
            let rest = &data[done..];
            // SAFETY: the image is open; at most `rest.len()` bytes are read from `rest`.
            let written = unsafe {
                (self.functions().rbd_write)(
                    self.handle,
                    offset + done as u64,
                    rest.len(),
                    rest.as_ptr().cast(),
                )
            };
            match check("rbd_write", written)? {
                0 => {
                    let source = io::Error::from(io::ErrorKind::WriteZero);
                    return Err(CephError { call: "rbd_write", source });
                }
                count => done += count,
            }
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub fn flush(&self) -> Result<(), CephError> {
        // SAFETY: the image is open.
        check_int("rbd_flush", unsafe { (self.functions().rbd_flush)(self.handle) })
    }

    /// Calls `visit` with every part of `range` that differs from the snapshot `from`, or holds data when there is
    /// none, and whether it holds data now; parents are part of it. Whole objects are quicker to list where the image has
    /// a map of them. `visit` returns whether to go on.
    pub fn changes(
        &self,
        from: Option<&str>,
        range: &Range<u64>,
        whole_objects: bool,
        visit: &mut dyn FnMut(Range<u64>, bool) -> bool,
    ) -> Result<(), CephError> {
        const CALL: &str = "rbd_diff_iterate2";
        let from = from.map(|from| text(CALL, from)).transpose()?;
        let mut visit = visit;
        let argument: *mut &mut dyn FnMut(Range<u64>, bool) -> bool = &raw mut visit;
        // SAFETY: the image is open; the text ends with a zero byte, null means nothing; the callback gets a pointer to
        // `visit`, which lives until the call returns, and the library calls it from one thread at a time.
        let result = unsafe {
            (self.functions().rbd_diff_iterate2)(
                self.handle,
                pointer(from.as_ref()),
                range.start,
                range.end - range.start,
                1,
                u8::from(whole_objects),
                on_change,
                argument.cast(),
            )
        };
        check_int(CALL, result)
    }
}

/// Hands one change on; a panic or a wish to stop ends the listing.
extern "C" fn on_change(offset: u64, length: usize, exists: c_int, argument: *mut c_void) -> c_int {
    const STOP: c_int = -4; // EINTR
    // SAFETY: `changes` passes a pointer to a closure that is alive and used by nobody else meanwhile.
    let visit = unsafe { &mut *argument.cast::<&mut dyn FnMut(Range<u64>, bool) -> bool>() };
    let end = offset.saturating_add(length as u64);
    match catch_unwind(AssertUnwindSafe(|| visit(offset..end, exists != 0))) {
        Ok(true) => 0,
        Ok(false) | Err(_) => STOP,
    }
}
