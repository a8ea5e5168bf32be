"""The embedded CLIPs, fedmoe-tiny and fedmoe-wide: model configs and compact checkpoints. See README.md."""
