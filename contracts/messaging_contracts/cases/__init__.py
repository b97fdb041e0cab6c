"""The cases, one file per area. Each is a plain async function that takes the broker under test."""
