package generate

import (
	"reflect"
)

// language is one that projects can be in. Its templates lie below
// templates/NAME; what it can't take from there is here.
type language struct {
	Syntax
	client    *clientSyntax
	embeds    bool // structures inline others by name, as Go's do
	structure func(t reflect.Type, fields []Field) string
	slice     func(t reflect.Type, items []string) string
	dict      func(t reflect.Type, keys, values []string) string
	pointer   func(t reflect.Type, inner string) string
	number    func(int64) string // of a field, not of an expression
	stubs     map[string]string  // files of plugin.Sources, and where they go
	stub      func(p *Project, text []byte) []byte
	pkg       func(name string) string // a name that packages may have
	script    func(p *Project) string  // where the text that runs tasks goes, unless it is the top
	format    func(path string, text []byte) ([]byte, error)
}

// languages are added to by a file for each.
var languages = map[string]*language{"go": golang}
