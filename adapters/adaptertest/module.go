package adaptertest

// Module encodes a WebAssembly module by hand: one memory of the given pages
// (none if negative), and a function exported as name with the given body
// (without its end). In the text format:
//
//	(module (memory PAGES) (func (export NAME) BODY))
//
// Format: https://webassembly.github.io/spec/core/binary/modules.html
func Module(name string, pages int, body ...byte) []byte {
	section := func(id byte, content ...byte) []byte {
		return append([]byte{id, byte(len(content))}, content...)
	}
	m := []byte{0, 'a', 's', 'm', 1, 0, 0, 0}
	m = append(m, section(1, 1, 0x60, 0, 0)...) // type 0: no parameters, no results
	m = append(m, section(3, 1, 0)...)          // function 0 is of type 0
	if pages >= 0 {
		m = append(m, section(5, append([]byte{1, 0}, leb(pages)...)...)...)
	}
	m = append(m, section(7, append(append([]byte{1, byte(len(name))}, name...), 0, 0)...)...)
	return append(m, section(10, append([]byte{1, byte(len(body) + 2), 0}, append(body, 0x0b)...)...)...)
}

func leb(n int) (out []byte) {
	for ; n >= 0x80; n >>= 7 {
		out = append(out, byte(n)|0x80)
	}
	return append(out, byte(n))
}

// Bodies for Module.
var (
	BodyNothing = []byte{}                                                                    // the program ends at once
	BodyTrap    = []byte{0x00}                                                                // unreachable
	BodyLoop    = []byte{0x03, 0x40, 0x0c, 0x00, 0x0b}                                        // (loop br 0)
	BodyGrow    = []byte{0x03, 0x40, 0x41, 1, 0x40, 0, 0x41, 0x7f, 0x47, 0x0d, 0, 0x0b, 0x00} // grow memory until refused, then trap
)
