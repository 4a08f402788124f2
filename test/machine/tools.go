package machine

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// extractELF writes the kernel proper, dir/vmlinux, out of the self-unpacking
// bzImage. QEMU starts it by its PVH entry, which saves the guest some seconds
// of unpacking by an emulated CPU. The header's fields are those of the
// kernel's Documentation/arch/x86/boot.rst.
func extractELF(ctx context.Context, k kernel) error {
	const (
		setupSects    = 0x1f1 // u8, in units of 512 bytes, without the first
		magic         = 0x202 // "HdrS"
		payloadOffset = 0x248 // u32, from the start of the protected-mode code
		payloadLength = 0x24c // u32
	)
	image, err := os.ReadFile(k.image())
	if err != nil {
		return err
	}
	if len(image) < payloadLength+4 || string(image[magic:magic+4]) != "HdrS" {
		return fmt.Errorf("%s is not a bzImage", k.image())
	}
	start := (int(image[setupSects])+1)*512 + int(binary.LittleEndian.Uint32(image[payloadOffset:]))
	end := start + int(binary.LittleEndian.Uint32(image[payloadLength:]))
	if start < 0 || end < start || end > len(image) {
		return fmt.Errorf("%s: its payload, bytes %d to %d, is beyond its end", k.image(), start, end)
	}
	payload := image[start:end]
	var unpack []string
	switch {
	case strings.HasPrefix(string(payload), "\xfd7zXZ"):
		unpack = []string{"xz", "-dc"}
	case strings.HasPrefix(string(payload), "\x28\xb5\x2f\xfd"):
		unpack = []string{"zstd", "-dc"}
	default:
		return fmt.Errorf("%s: compressed in a way not known here", k.image())
	}
	packed := filepath.Join(k.dir, "vmlinux.packed")
	// The last four bytes are the unpacked size, not part of the stream.
	if err := os.WriteFile(packed, payload[:len(payload)-4], 0o644); err != nil {
		return err
	}
	defer os.Remove(packed)
	elf, err := command(ctx, k.dir, unpack[0], append(unpack[1:], packed)...)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(elf), "\x7fELF") {
		return fmt.Errorf("%s: what it unpacks to is not an ELF file", k.image())
	}
	return os.WriteFile(filepath.Join(k.dir, "vmlinux"), elf, 0o644)
}
