//! Who is asking: bearer tokens.

use blake3::Hash;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;

use crate::service::rights::ApiToken;
use crate::source::Secret;

/// Returns the token that the request shows, if the configuration has it. The time this takes tells nothing about a token:
/// hashes are compared, in constant time (as `blake3::Hash` does), and always all of them.
pub(super) fn client<'t>(tokens: &'t [ApiToken], headers: &HeaderMap) -> Option<&'t ApiToken> {
    let shown = blake3::hash(shown_token(headers)?);
    let same = |token: &Secret| -> bool { Hash::eq(&blake3::hash(token.expose().as_bytes()), &shown) };
    let mut found = None;
    for one in tokens {
        if same(&one.token) && !one.token.expose().is_empty() {
            found = Some(one);
        }
    }
    found
}

/// Returns the token of the one `Authorization: Bearer TOKEN`.
fn shown_token(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (value, None) = (values.next()?.as_bytes(), values.next()) else { return None };
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(values: &[&str]) -> Option<&'static str> {
        let tokens = [("secret", "cli"), ("secret2", "backup2"), ("", "nobody")];
        let token = |(token, name): &(&str, &str)| ApiToken::of_admin(Secret::new((*token).into()), name);
        let tokens: Vec<ApiToken> = tokens.iter().map(token).collect();
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }
        client(Vec::leak(tokens), &headers).map(|one| one.name.as_str())
    }

    #[test]
    fn only_a_whole_token_is_taken() {
        assert_eq!(asked(&["Bearer secret"]), Some("cli"));
        assert_eq!(asked(&["bearer  secret2"]), Some("backup2"));
        for values in [
            &[][..],
            &[""],
            &["Bearer"],
            &["Bearer "],
            &["Bearer secre"],
            &["Bearer secret3"],
            &["Bearer Secret"],
            &["Bearer secret secret2"],
            &["Basic secret"],
            &["secret"],
            &["Bearer secret", "Bearer secret"],
        ] {
            assert_eq!(asked(values), None, "{values:?}");
        }
    }
}
