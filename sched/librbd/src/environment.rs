//! Which cluster, and as whom: what a configuration says, and what Ceph's programs take from `CEPH_ARGS` and
//! its libraries do not.

use std::path::PathBuf;

/// How to reach a cluster. What is not given is as for Ceph's own programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The configuration file; otherwise `CEPH_CONF`, or where Ceph looks for it.
    pub conf: Option<PathBuf>,
    /// The user without `client.`; otherwise `admin`.
    pub user: Option<String>,
    /// The name of the cluster; otherwise `ceph`.
    pub cluster: Option<String>,
}

impl Access {
    /// Fills what is not given from the text of `CEPH_ARGS`. Other options in it the libraries read themselves.
    #[must_use]
    pub fn or_arguments(mut self, arguments: &str) -> Self {
        let mut words = arguments.split_whitespace();
        while let Some(word) = words.next() {
            let (option, value) = match word.split_once('=') {
                Some((option, value)) => (option, Some(value.to_owned())),
                None => (word, None),
            };
            let mut value = || value.clone().or_else(|| words.next().map(str::to_owned));
            match option {
                "--id" | "--user" | "-i" => self.user = self.user.or_else(&mut value),
                "--name" | "-n" => {
                    let name = value();
                    let user = name.as_deref().and_then(|name| name.strip_prefix("client."));
                    self.user = self.user.or_else(|| user.map(str::to_owned));
                }
                "--conf" | "-c" => self.conf = self.conf.or_else(|| value().map(PathBuf::from)),
                "--cluster" => self.cluster = self.cluster.or_else(&mut value),
                _ => {}
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_fill_what_is_not_given() {
        let access = Access::default().or_arguments("--keyring /k --id backy -c /etc/x.conf --cluster=far");
        assert_eq!((access.user.as_deref(), access.cluster.as_deref()), (Some("backy"), Some("far")));
        assert_eq!(access.conf, Some(PathBuf::from("/etc/x.conf")));
        let named = Access::default().or_arguments("-n client.b --id");
        assert_eq!(named.user.as_deref(), Some("b"));
        let given = Access { user: Some("mine".to_owned()), ..Access::default() };
        assert_eq!(given.or_arguments("--id backy --id").user.as_deref(), Some("mine"));
    }
}
