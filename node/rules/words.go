package rules

import (
	"fmt"
	"reflect"
	"strings"
)

// Word is something that expressions can speak of.
type Word struct {
	Name    string `json:"name"` // like job.cpu
	Type    string `json:"type"`
	Meaning string `json:"meaning,omitempty"`
}

// Words lists them all.
func Words() []Word {
	var list []Word
	t := reflect.TypeFor[Facts]()
	for i := range t.NumField() {
		of := t.Field(i)
		note := of.Tag.Get("doc")
		for k := range of.Type.NumField() {
			f := of.Type.Field(k)
			meaning := f.Tag.Get("doc")
			if note != "" {
				meaning = strings.TrimSpace(meaning + " (" + note + ")")
			}
			list = append(list, Word{of.Tag.Get("json") + "." + f.Tag.Get("json"), typeName(f.Type), meaning})
		}
	}
	return append(list, Word{"KiB, MiB, GiB, TiB", "whole number", "as in job.memory > 8 * GiB"})
}

func typeName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Float64:
		return "number"
	case reflect.Slice:
		return "list"
	case reflect.Map:
		return "map of texts"
	}
	return "whole number"
}

// Tried is what became of one example.
type Tried struct {
	Rule    string `json:"rule"`
	Example int    `json:"example"` // from 0
	Field   string `json:"field"`   // path like "rules[0].examples[1]"
	Expect  string `json:"expect"`
	Why     string `json:"why,omitempty"` // it fails; "": it doesn't
}

// Try runs the examples of rules.
func Try(list []Rule) []Tried {
	var book Book
	tried := []Tried{}
	for i, r := range list {
		p, _, err := r.terse()
		for k, e := range r.Examples {
			t := Tried{Rule: r.Name, Example: k, Field: fmt.Sprintf("rules[%d].examples[%d]", i, k), Expect: e.Expect}
			if err != nil {
				t.Why = err.Error()
			} else {
				t.Why = e.fails(&book, p, !r.public())
			}
			tried = append(tried, t)
		}
	}
	return tried
}
