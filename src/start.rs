//! What a start needs of its system, checked before anything is begun: Pingora panics where it is not
//! there, in the background where nobody sees it.

use std::fs::{metadata, symlink_metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::SocketAddr;
use std::path::Path;

use nix::unistd::{AccessFlags, Group, User, access, getegid, geteuid};
use pingora_core::server::configuration::{Opt, ServerConf};

use crate::config::{ConfigError, Settings};

/// Checks that a start with `options` can use the files, the user and the group that `settings` name.
/// Leaves nothing behind.
///
/// # Errors
/// The first key that names what cannot be used.
pub fn check(options: &Opt, settings: &Settings) -> Result<(), ConfigError> {
    let Settings { server, mcp } = settings;
    let of = |key| {
        let file = options.conf.as_deref().unwrap_or_default();
        move |problem| ConfigError::of_key(file, key, problem)
    };
    if let Some(path) = mcp.access_log.file() {
        writable(path, AccessFlags::W_OK).map_err(of("mcp.access_log.path"))?;
    }
    socket_address(&server.upgrade_sock).map_err(of("upgrade_sock"))?;
    if options.upgrade {
        replaceable(Path::new(&server.upgrade_sock)).map_err(of("upgrade_sock"))?;
    }
    if !(options.daemon || server.daemon) {
        return Ok(());
    }
    pid_file(Path::new(&server.pid_file)).map_err(of("pid_file"))?;
    if let Some(path) = &server.error_log {
        let both = AccessFlags::R_OK | AccessFlags::W_OK;
        writable(Path::new(path), both).map_err(of("error_log"))?;
    }
    if let Some(name) = &server.user {
        let user = user(name).map_err(of("user"))?;
        if server.group.is_none() {
            own_group(&user).map_err(of("group"))?;
        }
    }
    if let Some(name) = &server.group {
        group(name).map_err(of("group"))?;
    }
    Ok(())
}

/// Has a process in the background stay where it was started, so that what the configuration file names
/// is there when it is read again, and leave the group that it has together with the user.
pub(crate) fn complete(server: &mut ServerConf) {
    server.working_directory = std::env::current_dir().ok();
    if let (Some(name), None) = (&server.user, &server.group) {
        server.group = user(name).and_then(|user| own_group(&user)).ok();
    }
}

/// Whether a file at `path` gives `access` to it, or can be made where there is none.
fn writable(path: &Path, flags: AccessFlags) -> Result<(), String> {
    match metadata(path) {
        Ok(found) if found.is_dir() => Err("a directory: expected a file".to_owned()),
        Ok(_) => access(path, flags).map_err(|error| not_written(error.into())),
        Err(error) if error.kind() == ErrorKind::NotFound => makeable(path),
        Err(error) => Err(not_written(error)),
    }
}

/// Whether there can be a pid file at `path`. Pingora renames what is there, `/dev/null` too.
fn pid_file(path: &Path) -> Result<(), String> {
    match metadata(path) {
        Ok(found) if !found.is_file() => {
            Err("not a plain file: expected a path at which nothing else is".to_owned())
        }
        Ok(_) | Err(_) => writable(path, AccessFlags::W_OK),
    }
}

/// Whether something can be made at `path`.
fn makeable(path: &Path) -> Result<(), String> {
    let Some(folder) = path.parent() else {
        return Err("empty: expected a file's path".to_owned());
    };
    let folder = Path::new(".").join(folder);
    let flags = AccessFlags::W_OK | AccessFlags::X_OK;
    access(&folder, flags).map_err(|error| not_written(error.into()))
}

fn not_written(error: io::Error) -> String {
    format!("cannot be written: {error}: expected a path at which this user may write")
}

fn socket_address(path: &str) -> Result<(), String> {
    let address = SocketAddr::from_pathname(path).map(drop);
    address.map_err(|_| "no socket's address: expected a path of at most 100 bytes".to_owned())
}

/// Whether a socket can be made at `path`. Pingora removes what is there.
fn replaceable(path: &Path) -> Result<(), String> {
    match symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => makeable(path),
        Ok(_) => Err("not a socket: expected a path at which nothing else is".to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => makeable(path),
        Err(error) => Err(not_written(error)),
    }
}

fn user(name: &str) -> Result<User, String> {
    let found = User::from_name(name).map_err(not_looked_up)?;
    let user = found.ok_or("no such user: expected the name of one")?;
    if user.uid != geteuid() && !geteuid().is_root() {
        return Err("another user than the present one: expected a start as root".to_owned());
    }
    Ok(user)
}

/// The name of the group that `user` has without any other.
fn own_group(user: &User) -> Result<String, String> {
    let found = Group::from_gid(user.gid).map_err(not_looked_up)?;
    let own = found.ok_or("none, and the user's own has no name: expected the name of one")?;
    group(&own.name)?;
    Ok(own.name)
}

fn group(name: &str) -> Result<(), String> {
    let found = Group::from_name(name).map_err(not_looked_up)?;
    let group = found.ok_or("no such group: expected the name of one")?;
    if group.gid != getegid() && !geteuid().is_root() {
        return Err("another group than the present one: expected a start as root".to_owned());
    }
    Ok(())
}

fn not_looked_up(error: nix::Error) -> String {
    format!("cannot be looked up: {error}: expected a name that this system knows")
}
