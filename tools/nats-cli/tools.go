//go:build tools

// Package tools names the official NATS command line, so that go.mod pins its version.
package tools

import _ "github.com/nats-io/natscli/nats"
