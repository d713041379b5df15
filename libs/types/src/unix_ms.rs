use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, as times are stored and sent; 0 for what was before.
pub fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_before_is_as_early_as_can_be() {
        assert_eq!(unix_ms(UNIX_EPOCH + Duration::from_secs(2)), 2000);
        assert_eq!(unix_ms(UNIX_EPOCH - Duration::from_secs(2)), 0);
    }
}
