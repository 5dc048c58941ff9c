//! The socket that front ends connect to.

use crate::machine::MachineFailure;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Stat};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A listening socket with a name.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    made: Option<Stat>,
}

impl Socket {
    /// Makes the socket, for this user alone. One that a server has left behind is replaced; anything else that has the
    /// name stays, a symbolic link too.
    ///
    /// # Errors
    /// Someone listens there, or the name cannot be had.
    pub fn listen(path: &Path) -> Result<Self, MachineFailure> {
        let failed = |reason: String| MachineFailure::Socket {
            path: path.to_owned(),
            reason,
        };
        let said = |error: &io::Error| failed(crate::machine::said(error));
        let listener = match bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let stat = stat(path).map_err(|errno| said(&errno.into()))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
                    return Err(failed("a file that is no socket has this name".to_owned()));
                }
                match UnixStream::connect(path) {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    _ => return Err(failed("another program listens there".to_owned())),
                }
                std::fs::remove_file(path).map_err(|error| said(&error))?;
                bind(path)
            }
            bound => bound,
        };
        let listener = listener.and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        Ok(Self {
            listener: listener.map_err(|error| said(&error))?,
            path: path.to_owned(),
            made: stat(path).ok(),
        })
    }

    /// The socket alone, in a process that has no names.
    pub fn into_listener(self) -> UnixListener {
        self.listener
    }

    /// Takes the name away, if it is this socket's still.
    pub fn remove(&self) {
        let identity = |stat: &Stat| (stat.st_dev, stat.st_ino);
        let now = stat(&self.path).ok();
        if now.as_ref().map(identity) == self.made.as_ref().map(identity) && now.is_some() {
            // Someone else may have removed it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Binds to a name that is free; nobody else may connect, at no moment.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    bound
}

/// Of the name itself.
fn stat(path: &Path) -> rustix::io::Result<Stat> {
    rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_socket_is_the_users_own_and_goes_with_its_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.sock");
        let socket = Socket::listen(&path).unwrap();
        let mode = std::fs::symlink_metadata(&path)
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let used = Socket::listen(&path).unwrap_err().to_string();
        assert!(used.contains("another program listens there"), "{used}");
        socket.remove();
        assert!(!path.exists());
        drop(socket);
        // One that is left behind is replaced, but not removed by whoever it was before.
        let left = Socket::listen(&path).unwrap();
        drop(left.listener.try_clone().unwrap());
        let Socket { listener, made, .. } = left;
        drop(listener);
        let new = Socket::listen(&path).unwrap();
        let old = Socket {
            listener: new.listener.try_clone().unwrap(),
            path: path.clone(),
            made,
        };
        if old.made.map(|stat| stat.st_ino) != new.made.map(|stat| stat.st_ino) {
            old.remove();
            assert!(path.exists());
        }
    }

    #[test]
    fn other_things_of_that_name_stay() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "kept").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &link).unwrap();
        for path in [&file, &link] {
            let error = Socket::listen(path).unwrap_err().to_string();
            assert!(error.contains("no socket"), "{error}");
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"kept");
        assert!(!folder.path().join("elsewhere").exists());
        assert!(link.is_symlink());
    }
}
