// Package plugin runs adapters that are programs of their own: plug-ins, in any
// language, that serve the contract in adapter.proto over gRPC on a unix socket.
package plugin
