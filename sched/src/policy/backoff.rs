//! How long a job waits after failures. Pure.

/// The longest wait.
const MINUTES_MAX: i64 = 360;

/// Returns the seconds to wait after so many failures in a row: 2, 4, 8 minutes and so on, at most 6 hours;
/// none after none.
pub fn delay_secs(failures: u32) -> i64 {
    if failures == 0 {
        return 0;
    }
    60 * 1_i64
        .checked_shl(failures)
        .filter(|minutes| (1..MINUTES_MAX).contains(minutes))
        .unwrap_or(MINUTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_six_hours() {
        let minutes: Vec<i64> = (0..12).map(|failures| delay_secs(failures) / 60).collect();
        assert_eq!(minutes, [0, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360, 360]);
        for failures in [62, 63, 64, 65, u32::MAX] {
            assert_eq!(delay_secs(failures), 6 * 3600, "{failures}");
        }
    }
}
