"""The embedded CLIP: model config and compact checkpoint of fedmoe-tiny and fedmoe-tiny-vit. See README.md."""
