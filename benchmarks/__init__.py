"""What the library costs and gains, side by side with raw clients and peers: `make bench`."""
