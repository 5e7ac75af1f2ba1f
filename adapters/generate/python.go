package generate

import (
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/jointcloud/pcm/adapters/rest/description"
)

var python = &language{
	Syntax: Syntax{
		Null: "None", True: "True", False: "False",
		Int:   func(i int64) string { return strconv.FormatInt(i, 10) },
		Float: func(f float64) string { return floating(f) },
		Text:  strconv.Quote,
		List:  func(items []string) string { return "[" + strings.Join(items, ", ") + "]" },
		Map: func(keys, values []string) string {
			return "{" + strings.Join(pairs(keys, values, ": "), ", ") + "}"
		},
		Lambda: func(params []string, body string) string {
			switch {
			case len(params) == 0:
				return "lambda: " + body
			case params[0] == "":
				return "lambda v: " + body
			}
			return "lambda " + strings.Join(params, ", ") + ": " + body
		},
		If: func(cond, then, otherwise string) string {
			return "(" + then + " if truth(" + cond + ") else " + otherwise + ")"
		},
		Var:   func(name string) string { return "v[" + strconv.Quote(name) + "]" },
		Local: localName,
	},
	client: &clientSyntax{pair: func(key, value string) string { return key + ": " + value }, name: snake, arg: func(words []string) string { return pythonWord(snake(words)) }, taken: pythonWords + pythonClient, schema: pythonSchema},
	structure: func(t reflect.Type, fields []Field) string {
		var b strings.Builder
		b.WriteString(t.Name() + "(\n")
		for _, f := range fields {
			name := f.Name
			if slices.Contains([]string{"in", "as", "class"}, name) {
				name += "_" // a word of the language
			}
			b.WriteString(indent(name+"="+f.Value) + ",\n")
		}
		return b.String() + ")"
	},
	slice:   func(_ reflect.Type, items []string) string { return block("[", items, "]") },
	dict:    func(_ reflect.Type, keys, values []string) string { return block("{", pairs(keys, values, ": "), "}") },
	pointer: func(_ reflect.Type, inner string) string { return inner },
	number:  func(i int64) string { return strconv.FormatInt(i, 10) },
	stubs:   map[string]string{"adapter.proto": "adapter.proto"},
	pkg:     pythonPackage,
	script:  func(p *Project) string { return path.Join("src", p.Package, "script.sh") },
}

func init() { languages["python"] = python }

// floating is a number that is seen not to be whole.
func floating(f float64) string {
	s := strconv.FormatFloat(f, 'g', -1, 64)
	if !strings.ContainsAny(s, ".e") {
		s += ".0"
	}
	return s
}

func localName(name string) string {
	return "x_" + strings.NewReplacer("@", "", "#", "").Replace(name)
}

func pairs(keys, values []string, between string) []string {
	out := make([]string, len(keys))
	for i := range keys {
		out[i] = keys[i] + between + values[i]
	}
	return out
}

// block is a list that stands in one line if it is short.
func block(begin string, items []string, end string) string {
	if len(items) == 0 {
		return strings.TrimSpace(begin) + strings.TrimSpace(end)
	}
	one := begin + strings.Join(items, ", ") + end
	if len(one) < 100 && !strings.Contains(one, "\n") {
		return one
	}
	var b strings.Builder
	b.WriteString(strings.TrimSpace(begin) + "\n")
	for _, item := range items {
		b.WriteString(indent(item) + ",\n")
	}
	return b.String() + strings.TrimSpace(end)
}

func indent(s string) string { return "    " + strings.ReplaceAll(s, "\n", "\n    ") }

// taken are Python's own modules and words, which no package may be called.
const taken = `
abc aifc and antigravity argparse array as assert ast async asynchat asyncio asyncore atexit audioop await
base64 bdb binascii bisect break builtins bz2 calendar cgi cgitb chunk class cmath cmd code codecs codeop
collections colorsys compileall concurrent configparser contextlib contextvars continue copy copyreg crypt csv
ctypes curses dataclasses datetime dbm decimal def del difflib dis distutils doctest elif else email encodings
ensurepip enum errno except faulthandler fcntl filecmp fileinput finally fnmatch for fractions from ftplib
functools gc genericpath getopt getpass gettext glob global graphlib grp gzip hashlib heapq hmac html http
idlelib if imaplib imghdr imp import importlib in inspect io ipaddress is itertools json keyword lambda
lib2to3 linecache locale logging lzma mailbox mailcap marshal math mimetypes mmap modulefinder msilib msvcrt
multiprocessing netrc nis nntplib nonlocal not nt ntpath nturl2path numbers opcode operator optparse or os
ossaudiodev pass pathlib pdb pickle pickletools pipes pkgutil platform plistlib poplib posix posixpath pprint
profile pstats pty pwd py_compile pyclbr pydoc pydoc_data pyexpat queue quopri raise random re readline
reprlib resource return rlcompleter runpy sched secrets select selectors shelve shlex shutil signal site smtpd
smtplib sndhdr socket socketserver spwd sqlite3 sre_compile sre_constants sre_parse ssl stat statistics string
stringprep struct subprocess sunau symtable sys sysconfig syslog tabnanny tarfile telnetlib tempfile termios
textwrap this threading time timeit tkinter token tokenize tomllib trace traceback tracemalloc try tty turtle
turtledemo types typing unicodedata unittest urllib uu uuid venv warnings wave weakref webbrowser while winreg
winsound with wsgiref xdrlib xml xmlrpc yield zipapp zipfile zipimport zlib zoneinfo
`

// pythonWords are those of the language.
const pythonWords = `
False None True and as assert async await break class continue def del elif else except finally for from global
if import in is lambda nonlocal not or pass raise return try while with yield
`

// pythonClient are types of Python, and what a client has beside its calls.
const pythonClient = "list dict str int float bool bytes t base settings secrets login server call sign log_in exchange failed taken redact"

// pythonWord is a name that is no word of the language.
func pythonWord(name string) string {
	if slices.Contains(strings.Fields(pythonWords), name) {
		return name + "_"
	}
	return name
}

// pythonSchema is a type of Python.
func pythonSchema(p *Project, s description.Schema, typeName func(int) string) string {
	out := "Any"
	switch s.Kind {
	case "string":
		out = "str"
		if s.Enum != nil {
			texts := make([]string, len(s.Enum))
			for i, w := range s.Enum {
				texts[i] = p.emitter.Text(w)
			}
			out = "Literal[" + strings.Join(texts, ", ") + "]"
		}
	case "integer":
		out = "int"
	case "number":
		out = "float"
	case "boolean":
		out = "bool"
	case "array":
		out = "list[" + pythonSchema(p, *s.Items, typeName) + "]"
	case "map":
		out = "dict[str, " + pythonSchema(p, *s.Items, typeName) + "]"
	case "object":
		out = typeName(s.Type)
	case "union":
		parts := make([]string, len(s.Of))
		for i, one := range s.Of {
			parts[i] = pythonSchema(p, one, typeName)
		}
		out = strings.Join(parts, " | ")
	}
	if s.Null && out != "Any" {
		out += " | None"
	}
	return out
}

// pythonPackage is a name that a package may have: a letter first, and not one of Python's own.
func pythonPackage(name string) string {
	if name[0] < 'a' || slices.Contains(strings.Fields(taken), name) {
		return "adapter_" + name
	}
	return name
}
