//! How a guest reaches its broker: TCP over user networking, a virtio-serial port, vsock through vhost-user.
