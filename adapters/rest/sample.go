package rest

import (
	"reflect"
	"strings"

	"github.com/jointcloud/pcm/adapters/rest/description"
)

// sample is what stands for a value that only an answer could tell, in requests
// that are shown: a map with each field that the description reads below root
// ("pool.native", "job"), whose text is the field's name.
func sample(d *description.Description, root string) map[string]any {
	all := map[string]any{}
	visit(reflect.ValueOf(d).Elem(), func(ref string) {
		rest, ok := strings.CutPrefix(ref, root+".")
		if !ok {
			return
		}
		at := all
		steps := strings.Split(rest, ".")
		for i, s := range steps {
			below, deeper := at[s].(map[string]any)
			switch {
			case i == len(steps)-1 && !deeper:
				at[s] = strings.ToUpper(s)
			case i < len(steps)-1 && !deeper:
				below = map[string]any{}
				at[s] = below
			}
			at = below
		}
	})
	return all
}

// reads tells whether expressions of what of points to speak of ref, or what is in it.
func reads(of any, ref string) bool {
	found := false
	visit(reflect.ValueOf(of).Elem(), func(r string) {
		found = found || r == ref || strings.HasPrefix(r, ref+".") || strings.HasPrefix(ref, r+".")
	})
	return found
}

var (
	templateType   = reflect.TypeFor[description.Template]()
	expressionType = reflect.TypeFor[description.Expression]()
)

// visit tells of all that expressions of v speak of.
func visit(v reflect.Value, tell func(ref string)) {
	switch v.Type() {
	case templateType:
		if t := v.Interface().(description.Template).Compiled(); t != nil {
			for _, x := range t.Exprs() {
				for _, ref := range x.Refs() {
					tell(ref)
				}
			}
		}
		return
	case expressionType:
		if x := v.Interface().(description.Expression); x.Expr != nil {
			for _, ref := range x.Refs() {
				tell(ref)
			}
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			visit(v.Elem(), tell)
		}
	case reflect.Slice:
		for i := range v.Len() {
			visit(v.Index(i), tell)
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			visit(it.Value(), tell)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				visit(v.Field(i), tell)
			}
		}
	}
}
