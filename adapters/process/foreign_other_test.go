//go:build !amd64

package process

const foreign = false

func foreignCall() {}
