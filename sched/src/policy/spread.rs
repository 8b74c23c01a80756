//! Where in its interval a job runs. Jobs with the same schedule must not all begin at midnight, and each
//! job must keep its place when the service restarts or the job moves to another server: so the place is
//! computed from the job's name alone, as the original computes it. Pure. Owner of `md-5` and `rand_mt`.
//!
//! The original seeds Python's Mersenne Twister with the MD5 of the name, read as one big number, and draws
//! a number from 0 to the longest interval. MD5 is no protection here, only a way to spread names evenly.

use md5::{Digest as _, Md5};
use rand_mt::Mt;

/// Returns the seconds by which the job's times are moved: 0 to `limit_secs`, the longest interval of its
/// schedule.
pub fn spread_secs(job: &str, limit_secs: i64) -> i64 {
    let limit = u32::try_from(limit_secs.max(0)).unwrap_or(u32::MAX - 1).min(u32::MAX - 1);
    let mut random = Mt::new_with_key(seed(job));
    // Python's way to a number below a bound: as many bits as the bound has, again until one fits.
    let unused_bits = (limit + 1).leading_zeros();
    loop {
        let drawn = random.next_u32() >> unused_bits;
        if drawn <= limit {
            return i64::from(drawn);
        }
    }
}

/// The words of a big number as Python seeds with them: the lowest first, none for leading zeros.
fn seed(job: &str) -> Vec<u32> {
    let digest: [u8; 16] = Md5::digest(job.as_bytes()).into();
    let number = u128::from_be_bytes(digest);
    let words = [0, 32, 64, 96].map(|shift| (number >> shift) as u32);
    let used = words.iter().rposition(|word| *word != 0).map_or(1, |last| last + 1);
    words[..used].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spread_of_the_original_is_reproduced() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("testdata/schedule-vectors.json")).unwrap();
        let vectors = vectors["spread"].as_array().unwrap();
        assert_eq!(vectors.len(), 24);
        for vector in vectors {
            let job = vector["job"].as_str().unwrap();
            let spread = spread_secs(job, vector["limit"].as_i64().unwrap());
            assert_eq!(spread, vector["spread"].as_i64().unwrap(), "{vector}");
        }
    }

    #[test]
    fn any_limit_bounds_the_spread() {
        for limit in [0, 1, 2, 3, 59, 86_400, super::super::interval::INTERVAL_SECS_MAX, i64::MAX, -1] {
            for job in ["web01", "web02", "db", ""] {
                let spread = spread_secs(job, limit);
                assert!((0..=limit.max(0)).contains(&spread), "{job} {limit}: {spread}");
            }
        }
    }

    #[test]
    fn a_thousand_jobs_are_spread_evenly_over_the_day() {
        let mut hours = [0; 24];
        for number in 0..1000 {
            let spread = spread_secs(&format!("vm{number:04}"), 30 * 86_400);
            hours[usize::try_from(spread % 86_400 / 3600).unwrap()] += 1;
        }
        assert!(hours.iter().all(|jobs| (20..70).contains(jobs)), "{hours:?}");
    }
}
