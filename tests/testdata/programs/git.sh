git clone -q /mnt/project /srv/git
cd /srv/git
git config user.name t
git config user.email t@example.org
for i in 1 2 3 4 5 6; do
	git mv data/0$i moved$i
	git commit -qam "move $i"
done
git worktree add -q ../git2 HEAD~3
git gc -q --aggressive --prune=now
git fsck --full --strict
git -C ../git2 status --porcelain | diff /dev/null -
git clone -q --no-hardlinks /srv/git /srv/git3
git -C /srv/git3 log --oneline | wc -l
