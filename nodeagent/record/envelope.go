package record

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// Format is the version this package writes. A reader refuses a higher one.
const Format = 1

// UnreadableError is returned for a record that must be left alone: another
// format, a broken checksum, not a record at all.
type UnreadableError struct{ Reason string }

func (e *UnreadableError) Error() string { return "unreadable record: " + e.Reason }

type envelope struct {
	Format   int             `json:"format"`
	Checksum string          `json:"checksum"`
	Pool     json.RawMessage `json:"pool,omitempty"`
	Volume   json.RawMessage `json:"volume,omitempty"`
	Trash    json.RawMessage `json:"trash,omitempty"`
}

func checksum(body []byte) (string, error) {
	var compact bytes.Buffer
	if err := json.Compact(&compact, body); err != nil {
		return "", err
	}
	sum := sha256.Sum256(compact.Bytes())
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

func seal(body any, field func(*envelope) *json.RawMessage) ([]byte, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	e := envelope{Format: Format}
	if e.Checksum, err = checksum(raw); err != nil {
		return nil, err
	}
	*field(&e) = raw
	out, err := json.MarshalIndent(e, "", "  ")
	return append(out, '\n'), err
}

func unseal(data []byte, body any, field func(*envelope) *json.RawMessage) error {
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return &UnreadableError{Reason: err.Error()}
	}
	if e.Format != Format {
		return &UnreadableError{Reason: fmt.Sprintf("format %d, this program knows %d",
			e.Format, Format)}
	}
	raw := *field(&e)
	if len(raw) == 0 {
		return &UnreadableError{Reason: "it is a record of another kind"}
	}
	sum, err := checksum(raw)
	if err != nil {
		return &UnreadableError{Reason: err.Error()}
	}
	if sum != e.Checksum {
		return &UnreadableError{Reason: "the checksum does not match"}
	}
	if err := json.Unmarshal(raw, body); err != nil {
		return &UnreadableError{Reason: err.Error()}
	}
	return nil
}
