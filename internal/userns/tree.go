package userns

import (
	"sync"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
	"github.com/umoci-mount/umoci-mount/internal/notify"
)

var _ notify.Tree = (*tree)(nil)

// tree records in a mounted bundle.
type tree struct {
	mu     sync.Mutex
	editor *bundle.Editor // protected by mu
}

func openTree(path string) (*tree, error) {
	e, err := bundle.DialEditor(path)
	if err != nil {
		return nil, err
	}
	return &tree{editor: e}, nil
}

func (t *tree) close() error { return t.editor.Close() }

func (t *tree) apply(e bundle.Edit) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.editor.Apply(e)
}

func (t *tree) Chown(ino uint64, uid, gid *uint32) error {
	return t.apply(bundle.Edit{Op: bundle.EditOwner, Ino: ino, UID: uid, GID: gid})
}

func (t *tree) Mknod(dir uint64, name string, mode uint32, rdev uint64, uid, gid uint32) error {
	return t.apply(bundle.Edit{Op: bundle.EditMknod, Ino: dir, Name: name, Mode: mode, Rdev: rdev, UID: &uid, GID: &gid})
}

func (t *tree) SetXattr(ino uint64, name string, value []byte, flags uint32) error {
	return t.apply(bundle.Edit{Op: bundle.EditSetXattr, Ino: ino, Name: name, Value: value, Flags: flags})
}

func (t *tree) RemoveXattr(ino uint64, name string) error {
	return t.apply(bundle.Edit{Op: bundle.EditRemoveXattr, Ino: ino, Name: name})
}

func (t *tree) Actor(tid int, uid, gid uint32) error {
	return t.apply(bundle.Edit{Op: bundle.EditActor, TID: tid, UID: &uid, GID: &gid})
}

func (t *tree) Owner(ino uint64) (uid, gid uint32, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.editor.Owner(ino)
}
