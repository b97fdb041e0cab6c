"""The suite that every adapter must pass, ours or a third party's, and the brokers to run it on."""
