use super::*;
pub fn add(_: &mut Cases<'_>) {}
