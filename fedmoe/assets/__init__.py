"""The embedded CLIPs: model configs and compact checkpoints of fedmoe-tiny, fedmoe-tiny-vit and fedmoe-wide."""
