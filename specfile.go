package pcm

import "errors"

// ParseSpec reads a job's spec, YAML or JSON, fills in its defaults and checks
// all that can be checked without the mesh. The filename is for messages only.
// The error is a *FileError that lists every fault with line, column and field.
func ParseSpec(data []byte, filename string) (Spec, error) {
	var spec Spec
	at, err := DecodeYAML(data, filename, &spec)
	var fe *FileError
	if err != nil && !errors.As(err, &fe) {
		return Spec{}, err
	}
	if fe == nil {
		fe = &FileError{File: filename}
	}
	known := map[string]bool{}
	for _, f := range fe.Faults {
		if f.Field == "" {
			return Spec{}, fe // nothing was decoded: what is missing would only confuse
		}
		known[f.Field] = true
	}
	for _, err := range spec.Normalize() {
		fault := FileFault{Message: err.Error()}
		var field *FieldError
		if errors.As(err, &field) {
			fault.Field, fault.Message = field.Field, field.Err.Error()
		}
		if known[fault.Field] || within(fault.Field, fe.Faults) {
			continue // follows from a fault that is listed already
		}
		p := at.Of(fault.Field)
		fault.Line, fault.Column = p.Line, p.Column
		fe.Faults = append(fe.Faults, fault)
	}
	if len(fe.Faults) > 0 {
		fe.Faults = trimFaults(fe.Faults)
		return Spec{}, fe
	}
	return spec, nil
}

// within tells whether field holds, or lies in, a field at fault: then what is
// missing or out of range there may be so only because decoding left it out.
func within(field string, faults []FileFault) bool {
	inside := func(in, out string) bool {
		return len(in) > len(out) && in[:len(out)] == out && (in[len(out)] == '.' || in[len(out)] == '[')
	}
	for _, f := range faults {
		if inside(f.Field, field) || inside(field, f.Field) {
			return true
		}
	}
	return false
}
