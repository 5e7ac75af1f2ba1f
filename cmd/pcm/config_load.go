package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"

	"github.com/jointcloud/pcm"
)

// maxConfig bounds the configuration file.
const maxConfig = 1 << 20

// loadConfig makes the configuration out of file, environment and flags. file is
// "" for config.yaml in the data folder, which need not exist; data is the data
// folder that flag or environment name, or "".
func loadConfig(file, data string, getenv func(string) string, flags func(*Config)) (Config, error) {
	dir := data
	if dir == "" {
		dir = defaultData(getenv)
	}
	c := DefaultConfig(dir)
	optional := file == ""
	if optional {
		file = filepath.Join(dir, "config.yaml")
	}
	raw, err := readBounded(file)
	switch {
	case optional && errors.Is(err, fs.ErrNotExist):
		raw = nil
	case err != nil:
		return c, pcm.Errorf(pcm.Invalid, "can't read the configuration: %w", err)
	}
	at, err := decodeConfig(raw, file, &c)
	if err != nil {
		return c, err
	}
	if err := overlayEnv(reflect.ValueOf(&c).Elem(), "PCM", getenv); err != nil {
		return c, err
	}
	flags(&c)
	locateDescriptions(c.Adapters.Described, filepath.Dir(file))
	if err := c.complete(); err != nil {
		return c, err
	}
	if err := addClasses(c.Classes, filepath.Dir(file)); err != nil {
		return c, err
	}
	if _, err := c.poolFacts(); err != nil {
		return c, placeFault(err, at, file, getenv)
	}
	if err := c.Validate(); err != nil {
		return c, placeFault(err, at, file, getenv)
	}
	if err := c.checkRules(at, file); err != nil {
		return c, err
	}
	return c, nil
}

func readBounded(file string) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxConfig {
		return nil, fmt.Errorf("%s has %s: at most %s are read", file, pcm.Bytes(info.Size()), pcm.Bytes(maxConfig))
	}
	return os.ReadFile(file)
}

// decodeConfig reads YAML over what c holds, strictly. A file of comments only is good.
func decodeConfig(raw []byte, file string, c *Config) (pcm.Positions, error) {
	for line := range bytes.Lines(raw) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return pcm.DecodeYAML(raw, file, c)
		}
	}
	return nil, nil
}

// placeFault says where a faulty value comes from: the variable, or the line of the file.
func placeFault(err error, at pcm.Positions, file string, getenv func(string) string) error {
	fault, ok := errors.AsType[*pcm.FieldError](err)
	if !ok {
		return err
	}
	if name := "PCM_" + strings.ToUpper(strings.ReplaceAll(fault.Field, ".", "_")); getenv(name) != "" {
		return pcm.Errorf(pcm.Invalid, "%s: %w", name, fault.Err)
	}
	if p, ok := at[fault.Field]; ok {
		return pcm.Errorf(pcm.Invalid, "%s:%d:%d: %s: %w", file, p.Line, p.Column, fault.Field, fault.Err)
	}
	return pcm.Errorf(pcm.Invalid, "%s: %w", fault.Field, fault.Err)
}

func didYouMean(key string, known []string) string {
	if n := pcm.Nearest(key, known); n != "" {
		return fmt.Sprintf("; did you mean %q?", n)
	}
	return ""
}

// overlayEnv sets every field whose variable is set. An empty variable counts as unset.
func overlayEnv(v reflect.Value, prefix string, getenv func(string) string) error {
	for i := range v.NumField() {
		name := prefix + "_" + strings.ToUpper(v.Type().Field(i).Tag.Get("json"))
		f := v.Field(i)
		if f.Kind() == reflect.Struct {
			if err := overlayEnv(f, name, getenv); err != nil {
				return err
			}
			continue
		}
		text := getenv(name)
		if text == "" {
			continue
		}
		if err := setField(f, text); err != nil {
			return pcm.Errorf(pcm.Invalid, "%s: %w", name, err)
		}
	}
	return nil
}

func setField(f reflect.Value, text string) error {
	switch p := f.Addr().Interface().(type) {
	case *string:
		*p = text
	case *Amount:
		*p = Amount(text)
	case *bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return pcm.Errorf(pcm.Invalid, "%q is not true or false", text)
		}
		*p = b
	case *int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return pcm.Errorf(pcm.Invalid, "%q is not a whole number", text)
		}
		*p = n
	case *[]string:
		*p = splitList(text)
	case *pcm.Labels:
		l, err := parseLabels(splitList(text))
		*p = l
		return err
	default:
		return pcm.Errorf(pcm.Internal, "a %T can't be set from the environment", p)
	}
	return nil
}

func splitList(text string) []string {
	list := []string{}
	for _, s := range strings.Split(text, ",") {
		if s = strings.TrimSpace(s); s != "" {
			list = append(list, s)
		}
	}
	return list
}

// parseLabels reads KEY=VALUE pairs.
func parseLabels(pairs []string) (pcm.Labels, error) {
	l := pcm.Labels{}
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, pcm.Errorf(pcm.Invalid, "label %q is not of the form KEY=VALUE", p)
		}
		l[k] = v
	}
	return l, nil
}
