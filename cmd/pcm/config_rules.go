package main

import (
	"os"
	"path/filepath"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/rules"
)

// checkRules finds what is wrong with the rules; the first fault, in its place.
func (c Config) checkRules(at pcm.Positions, file string) error {
	_, found := rules.Check(c.Rules)
	for _, f := range found {
		if !f.Warning {
			return pcm.Errorf(pcm.Invalid, "%s ('pcm rules lint' shows all that is wrong; to start without a rule, take it out, and an example that fails likewise)", placed(f, at, file))
		}
	}
	return nil
}

// placed is a finding with its place in the file, as compilers write it.
func placed(f rules.Finding, at pcm.Positions, file string) string {
	fault := pcm.FileFault{Field: f.Field, Message: f.Message}
	if p := at.Of(f.Field); p.Line > 0 {
		fault.Line, fault.Column = p.Line, p.Column
	}
	return (&pcm.FileError{File: file, Faults: []pcm.FileFault{fault}}).Error()
}

// ruleFile reads the rules of a configuration file, and no more of it; "" is the
// node's. Without a file there are none, and no places (nil).
func ruleFile(file, data string, getenv func(string) string) (list []rules.Rule, at pcm.Positions, name string, err error) {
	if file == "" {
		file = getenv("PCM_CONFIG")
	}
	optional := file == ""
	if optional {
		if data == "" {
			data = defaultData(getenv)
		}
		file = filepath.Join(data, "config.yaml")
	}
	raw, err := readBounded(file)
	if optional && os.IsNotExist(err) {
		return nil, nil, file, nil
	}
	if err != nil {
		return nil, nil, file, pcm.Errorf(pcm.Invalid, "can't read the rules: %w", err)
	}
	c := DefaultConfig(data)
	if at, err = decodeConfig(raw, file, &c); at == nil {
		at = pcm.Positions{} // there is a file, and nothing in it
	}
	return c.Rules, at, file, err
}

// ruleReader reads the rules as they are written now.
func ruleReader(file, data string, getenv func(string) string) func() (rules.Set, error) {
	return func() (rules.Set, error) {
		list, at, name, err := ruleFile(file, data, getenv)
		if err != nil {
			return rules.Set{}, err
		}
		if err := (Config{Rules: list}).checkRules(at, name); err != nil {
			return rules.Set{}, err
		}
		set, _ := rules.Check(list)
		return set, nil
	}
}
