//! How the service of a base directory is, as another process finds it out.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use super::config::ApiConfig;
use super::heartbeat::recorded_silence;
use super::lock::is_running;
use crate::error::Result;

/// How long a service that has just started may take from its lock to its first record.
const FIRST_RECORD: Duration = Duration::from_millis(300);
/// How long the API may take to say that it is well.
const API_PATIENCE: Duration = Duration::from_secs(3);

/// How a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pulse {
    /// There is none.
    Absent,
    /// Its main loop comes round.
    Beating,
    /// It has its lock and does nothing: for so long, if that is known.
    Silent(Option<Duration>),
}

/// Finds out how the service of a base directory is. A record that is too old is not believed at once: where the service
/// cannot write it, its API may still say that all is well.
pub fn pulse(base_dir: &Path, api: &ApiConfig, silence_max: Duration) -> Result<Pulse> {
    if !is_running(base_dir)? {
        return Ok(Pulse::Absent);
    }
    let is_fresh = || recorded_silence(base_dir).is_some_and(|silence| silence <= silence_max);
    if is_fresh() {
        return Ok(Pulse::Beating);
    }
    std::thread::sleep(FIRST_RECORD);
    if is_fresh() {
        return Ok(Pulse::Beating);
    }
    if !is_running(base_dir)? {
        return Ok(Pulse::Absent);
    }
    let patience = API_PATIENCE.min(silence_max);
    let is_well =
        !api.tokens.is_empty() && api.addrs.iter().any(|&addr| is_healthy(addr, api.port, patience));
    Ok(if is_well { Pulse::Beating } else { Pulse::Silent(recorded_silence(base_dir)) })
}

/// Whether the API at an address of this machine says that the service is well. It needs no token for that.
fn is_healthy(addr: IpAddr, port: u16, patience: Duration) -> bool {
    let addr = match addr {
        IpAddr::V4(addr) if addr.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(addr) if addr.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        addr => addr,
    };
    let answer = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(addr, port), patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let (begun, mut line, mut byte) = (Instant::now(), Vec::new(), [0]);
        while line.len() < 12 && begun.elapsed() < patience && stream.read(&mut byte)? > 0 {
            line.push(byte[0]);
        }
        Ok(line.starts_with(b"HTTP/1.1 200"))
    };
    answer().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::ServiceGuard;
    use crate::service::heartbeat::Heartbeat;

    /// The lock of a service that could not write its record.
    fn without_record(base_dir: &Path) -> ServiceGuard {
        let guard = ServiceGuard::take(base_dir).unwrap();
        guard.file().unwrap().set_len(0).unwrap();
        guard
    }

    #[test]
    fn a_lock_alone_is_no_sign_of_life() {
        let dir = tempfile::tempdir().unwrap();
        let api = ApiConfig::default();
        let seen = |silence_max| pulse(dir.path(), &api, silence_max).unwrap();
        let long = Duration::from_secs(60);
        assert_eq!(seen(long), Pulse::Absent);
        let guard = without_record(dir.path());
        assert_eq!(seen(long), Pulse::Silent(None));
        drop(guard);
        let guard = ServiceGuard::take(dir.path()).unwrap();
        let heart = Heartbeat::start(&guard, long).unwrap();
        assert_eq!(seen(long), Pulse::Beating);
        std::thread::sleep(Duration::from_millis(20));
        assert!(matches!(seen(Duration::from_millis(10)), Pulse::Silent(Some(_))));
        drop(heart);
    }

    #[test]
    fn the_api_can_answer_for_a_service_that_cannot_write() {
        let dir = tempfile::tempdir().unwrap();
        let _guard = without_record(dir.path());
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\nok\n", Pulse::Beating),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", Pulse::Silent(None)),
            ("", Pulse::Silent(None)),
        ] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let mut api = ApiConfig { addrs: vec!["0.0.0.0".parse().unwrap()], ..ApiConfig::default() };
            api.port = listener.local_addr().unwrap().port();
            let token = crate::source::Secret::new("x".to_owned());
            api.tokens = vec![crate::service::rights::ApiToken::of_admin(token, "x")];
            let answers = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 64];
                assert!(stream.read(&mut request).unwrap() > 0);
                stream.write_all(answer.as_bytes()).unwrap();
            });
            assert_eq!(pulse(dir.path(), &api, Duration::from_secs(60)).unwrap(), expected, "{answer}");
            answers.join().unwrap();
        }
    }
}
