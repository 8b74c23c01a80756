//! Which service is asked: by address and token, by a peer's name, or what the main configuration says.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use backy_sched::ServiceConfig;
use backy_sched::service::client::Client;
use backy_sched::service::config::PeerConfig;
use backy_store::Error as StoreError;
use backy_store::fs::ownership::{self, Secrecy};
use clap::Args;

use crate::commands::Context as Command;
use crate::failure::{refused, usage};
use crate::output::terminal;

/// A file with a token is never larger.
const TOKEN_FILE_BYTES_MAX: u64 = 4096;

/// The options that choose a service.
#[derive(Args, Debug)]
pub(super) struct Target {
    /// Ask this peer of the configuration [default: the service that `api.cli-default` names]
    #[arg(short, long, global = true, value_name = "NAME")]
    peer: Option<String>,
    /// Ask the service at this address; needs a token, and overrides --peer and --config
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    /// The token to show there; other users of this machine can see it in the list of processes
    #[arg(long, global = true, value_name = "TOKEN")]
    token: Option<String>,
    /// A file with nothing but the token
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl Target {
    /// Makes a client of the chosen service; nothing is sent yet.
    pub(super) fn open(&self, context: &Command) -> anyhow::Result<Client> {
        Ok(Client::new(self.choose(&|| context.config_path())?, Some(context.task_id())))
    }

    /// An address with its token comes before a peer's name, and that before the configuration's usual service.
    fn choose(&self, config_path: &dyn Fn() -> anyhow::Result<PathBuf>) -> anyhow::Result<PeerConfig> {
        const TOGETHER: &str = "`--url` goes with one of `--token` and `--token-file`";
        let token = match (&self.token, &self.token_file) {
            (Some(_), Some(_)) => return Err(usage("the token is given twice", TOGETHER)),
            (Some(token), None) => Some(token.clone()),
            (None, Some(path)) => Some(read_token(path)?),
            (None, None) => None,
        };
        match (&self.url, token) {
            (Some(url), Some(token)) => PeerConfig::new(url, &token).map_err(|why| usage(why, "")),
            (None, None) => self.configured(&config_path()?),
            (Some(_), None) => Err(usage("--url needs a token", TOGETHER)),
            (None, Some(_)) => Err(usage("a token needs --url", TOGETHER)),
        }
    }

    fn configured(&self, path: &Path) -> anyhow::Result<PeerConfig> {
        let config = ServiceConfig::load(path)?;
        let Some(name) = &self.peer else {
            let path = path.display();
            let hint = "set `api.cli-default.token-file`, or give `--url` and `--token-file`";
            return config
                .api
                .cli_default
                .ok_or_else(|| refused(format!("{path} does not say which token the client shows"), hint));
        };
        let known: Vec<&str> = config.peers.keys().map(String::as_str).collect();
        let hint = match known.is_empty() {
            true => "the configuration has no peers".to_owned(),
            false => format!("the configuration has {}", known.join(", ")),
        };
        let unknown = || refused(format!("there is no peer {name}"), hint);
        config.peers.get(name).cloned().ok_or_else(unknown)
    }
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(TOKEN_FILE_BYTES_MAX).read_to_string(&mut text))
        .with_context(|| format!("cannot read the token in {}", path.display()))?;
    if let Err(error @ StoreError::Unsafe { .. }) = ownership::check(path, Secrecy::Secret) {
        terminal::warn(error);
    }
    Ok(text.trim_start_matches('\u{feff}').trim().to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Typed {
        #[command(flatten)]
        target: Target,
    }

    fn choose(words: &[&str]) -> anyhow::Result<PeerConfig> {
        choose_with(words, Path::new("/nowhere/backy.conf"))
    }

    fn choose_with(words: &[&str], config: &Path) -> anyhow::Result<PeerConfig> {
        let typed = Typed::try_parse_from(std::iter::once(&"client").chain(words)).unwrap();
        typed.target.choose(&|| Ok(config.to_owned()))
    }

    #[test]
    fn an_address_comes_with_one_token_and_overrides_a_peer() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "\u{feff} s3cret\n").unwrap();
        let file = file.to_str().unwrap();
        let chosen = choose(&["--url", "https://backup2/", "--token-file", file]).unwrap();
        assert_eq!((chosen.url.as_str(), chosen.token.expose()), ("https://backup2", "s3cret"));
        let chosen = choose(&["--peer", "b", "--url", "http://a", "--token", "s3cret"]).unwrap();
        assert_eq!((chosen.url.as_str(), chosen.token.expose()), ("http://a", "s3cret"));
        for (words, message) in [
            (&["--url", "http://a"][..], "--url needs a token"),
            (&["--token", "s3cret"], "a token needs --url"),
            (&["--token-file", file], "a token needs --url"),
            (&["--url", "http://a", "--token", "s3cret", "--token-file", file], "the token is given twice"),
            (&["--peer", "b", "--url", "http://a"], "--url needs a token"),
            (&["--peer", "b", "--token", "s3cret"], "a token needs --url"),
            (&["--url", "ftp://a", "--token", "s3cret"], "must begin with http://"),
            (&["--url", "http://a", "--token", "s3\ncret"], "must be of printable ASCII"),
            (&["--url", "http://a", "--token-file", "/nowhere"], "cannot read the token in /nowhere"),
        ] {
            let error = format!("{:#}", choose(words).unwrap_err());
            assert!(error.contains(message) && !error.contains("s3"), "{words:?}: {error}");
        }
    }

    #[test]
    fn the_configuration_names_peers_and_the_usual_service() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backy.conf");
        let write = |api: &str| {
            let text = format!(
                "global: {{base-dir: /srv/backy}}\nschedules: {{}}\njobs: {{}}\n{api}\npeers:\n  \
                 backup2: {{url: 'http://backup2:6023/', token: two}}\n  backup3: {{url: 'http://b3', token: x}}\n"
            );
            std::fs::write(&path, text).unwrap();
        };
        let with = |words: &[&str]| choose_with(words, &path);
        write("api: {cli-default: {token: usual}}");
        assert_eq!(with(&[]).unwrap().token.expose(), "usual");
        assert_eq!(with(&["-p", "backup2"]).unwrap().url, "http://backup2:6023");
        assert_eq!(with(&["-p", "nobody"]).unwrap_err().to_string(), "there is no peer nobody");
        write("");
        let error = with(&[]).unwrap_err().to_string();
        assert!(error.ends_with("backy.conf does not say which token the client shows"), "{error}");
    }
}
