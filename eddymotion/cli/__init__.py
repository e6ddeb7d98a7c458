"""Commands: arguments → one frozen settings object → steps."""
