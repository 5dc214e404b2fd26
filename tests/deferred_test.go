package tests

import (
	"go/ast"
	"go/parser"
	"go/token"
	"testing"
)

// A deferred function that joins an error to a variable which is no result, as one that
// was declared in a block is not, reports it to nobody.
func TestDeferredFunctionsReportTheirErrors(t *testing.T) {
	eachSource(t, func(file, _ string) {
		files := token.NewFileSet()
		parsed, err := parser.ParseFile(files, file, nil, 0)
		if err != nil {
			t.Error(err)
			return
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			switch f := n.(type) {
			case *ast.FuncDecl:
				checkDeferred(t, files, f.Type, f.Body)
			case *ast.FuncLit:
				checkDeferred(t, files, f.Type, f.Body)
			}
			return true
		})
	})
}

// checkDeferred looks at what a function defers: what that assigns to is its own, a
// result, or a variable from outside.
func checkDeferred(t *testing.T, files *token.FileSet, signature *ast.FuncType, body *ast.BlockStmt) {
	t.Helper()
	if body == nil {
		return
	}
	ast.Inspect(body, func(n ast.Node) bool {
		if _, inner := n.(*ast.FuncLit); inner {
			return false
		}
		d, ok := n.(*ast.DeferStmt)
		if !ok {
			return true
		}
		deferred, ok := d.Call.Fun.(*ast.FuncLit)
		if !ok {
			return true
		}
		ast.Inspect(deferred.Body, func(n ast.Node) bool {
			assign, ok := n.(*ast.AssignStmt)
			if !ok || assign.Tok != token.ASSIGN {
				return true
			}
			for _, to := range assign.Lhs {
				name, ok := to.(*ast.Ident)
				if !ok || name.Obj == nil {
					continue
				}
				if at := name.Obj.Pos(); within(body, at) && !within(deferred, at) && !within(signature, at) {
					t.Errorf("%s: a deferred function sets a variable %s that is no result", files.Position(name.Pos()), name.Name)
				}
			}
			return true
		})
		return true
	})
}

func within(n ast.Node, at token.Pos) bool { return n.Pos() <= at && at < n.End() }
