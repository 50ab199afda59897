# SPDX-License-Identifier: Apache-2.0
# Where each file of the product goes, the packages, and the repositories of them.
RELEASED := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' packetwatch/__init__.py)
# 0.1.0 at the tag v0.1.0, 0.1.0~git123 on the way there; an unpacked source archive counts as released.
VERSION ?= $(RELEASED)$(shell git describe --exact-match --tags --match 'v$(RELEASED)' >/dev/null 2>&1 || \
	git rev-list --count HEAD 2>/dev/null | sed 's/^/~git/')
# All in a package is as old as its commit: the same commit gives the same bytes.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || stat -c %Y packetwatch/__init__.py)

# Without its history a build would call itself a release, or older than the one before.
ifeq ($(origin VERSION)$(wildcard .git),file.git)
history = $(if $(filter false,$(shell git rev-parse --is-shallow-repository 2>/dev/null)),,$(error The version comes \
	from git, which refuses this tree or has part of it only: git config --global --add safe.directory $(CURDIR), \
	git fetch --unshallow, or VERSION=X))
endif

DESTDIR ?=
PACKAGES ?= build/packages
REPO ?= build/repo
DEB = $(PACKAGES)/packetwatch_$(VERSION)_all.deb
RPM = $(PACKAGES)/packetwatch-$(VERSION)-1.noarch.rpm
MAINTAINER := $(shell sed -n 's/^--maintainer "\(.*\)"/\1/p' debian/fpm.options)

.PHONY: install deb rpm repo lint-packages deps-package
.SILENT: install deb rpm repo

install: L = $(DESTDIR)/usr/lib
install: S = $(DESTDIR)/usr/share
install: ## lay the product out below DESTDIR
	for file in $$(find packetwatch -name '*.py') $$(find bpf -name '*.[ch]'); do \
		install -Dm644 $$file $(L)/packetwatch/$$file; done
	sed -i 's/^__version__ = .*/__version__ = "$(VERSION)"/' $(L)/packetwatch/packetwatch/__init__.py
	install -Dm755 -t $(L)/packetwatch/bin bin/packetwatch bin/setup
	install -Dm644 -t $(L)/packetwatch systemd/restart-steps.conf
	install -dm755 $(DESTDIR)/usr/bin
	ln -sfn ../lib/packetwatch/bin/packetwatch $(DESTDIR)/usr/bin/packetwatch
	install -Dm644 -t $(L)/systemd/system systemd/packetwatch.service
	install -Dm644 systemd/packetwatch.sysusers.conf $(L)/sysusers.d/packetwatch.conf
	install -Dm644 systemd/packetwatch.tmpfiles.conf $(L)/tmpfiles.d/packetwatch.conf
	install -Dm644 -t $(L)/systemd/catalog systemd/packetwatch.catalog
	install -Dm644 -t $(DESTDIR)/etc/packetwatch etc/packetwatch.conf
	install -dm755 $(DESTDIR)/etc/packetwatch/packetwatch.conf.d
	install -Dm644 systemd/packetwatch.logrotate $(DESTDIR)/etc/logrotate.d/packetwatch
	install -Dm644 -t $(S)/man/man8 docs/packetwatch.8
	install -Dm644 -t $(S)/man/man5 docs/packetwatch.conf.5
	gzip -9nf $(S)/man/man8/packetwatch.8 $(S)/man/man5/packetwatch.conf.5
	install -Dm644 completion/packetwatch.bash $(S)/bash-completion/completions/packetwatch
	install -Dm644 -t $(S)/doc/packetwatch README.md SECURITY.md docs/*.md
	install -Dm644 -t $(S)/packetwatch/prometheus monitoring/prometheus/packetwatch.rules.yml
	install -Dm644 -t $(S)/packetwatch/prometheus monitoring/prometheus/scrape.yml
	install -Dm644 -t $(S)/packetwatch/grafana monitoring/grafana/packetwatch.json
	install -dm755 $(S)/packetwatch/puppet/modules
	cd puppet/modules && find packetwatch -type f -not -path '*/.*' -not -path '*/spec/*' -not -name Gemfile\* \
		-exec cp --parents --preserve=mode -t $(abspath $(S))/packetwatch/puppet/modules {} +

build/gems/bin/fpm:
	gem install --quiet --no-document --no-user-install --install-dir build/gems fpm -v 1.18.0

# $(call fpm,OPTIONS FILE,MORE OPTIONS) packages $(W)/tree. fpm knows no comments, and talks of every option.
# The caller's umask is not to be in the package.
define fpm
	chmod -R u=rwX,go=rX $(W)
	grep -v '^#' $(1) >$(W)/options
	umask 022; GEM_HOME=build/gems build/gems/bin/fpm --force --fpm-options-file $(W)/options --version '$(VERSION)' \
		$(2) $(W)/tree/=/ >$(W)/log || { cat $(W)/log; exit 1; }
	rm -rf $(W)
endef

deb: W = $(PACKAGES)/.deb
deb: deps-package build/gems/bin/fpm ## build the package for Debian and Ubuntu
	$(history)rm -rf $(W) && mkdir -p $(W)
	$(MAKE) -s install DESTDIR=$(W)/tree VERSION='$(VERSION)'
	install -Dm644 debian/copyright $(W)/tree/usr/share/doc/packetwatch/copyright
	install -Dm644 debian/lintian-overrides $(W)/tree/usr/share/lintian/overrides/packetwatch
	install -Dm755 debian/packetwatch.rtupdate $(W)/tree/usr/share/python3/runtime.d/packetwatch.rtupdate
	gzip -9n <CHANGELOG.md >$(W)/tree/usr/share/doc/packetwatch/NEWS.gz
	printf '%s\n' 'packetwatch ($(VERSION)) unstable; urgency=medium' '' \
		'  * What changed: /usr/share/doc/packetwatch/NEWS.gz' '' \
		" -- $(MAINTAINER)  $$(LC_ALL=C date -uRd @$(SOURCE_DATE_EPOCH))" >$(W)/changelog
	$(call fpm,debian/fpm.options,--package $(DEB) --deb-changelog $(W)/changelog \
		--description "$$(cat debian/description)")
	echo $(DEB)

rpm: W = $(PACKAGES)/.rpm
rpm: deps-package build/gems/bin/fpm ## build the package for Fedora and EL
	$(history)rm -rf $(W) && mkdir -p $(W)
	$(MAKE) -s install DESTDIR=$(W)/tree VERSION='$(VERSION)'
	install -Dm644 -t $(W)/tree/usr/share/doc/packetwatch CHANGELOG.md
	install -Dm644 -t $(W)/tree/usr/share/licenses/packetwatch LICENSES/*.txt
	install -Dm644 rpm/packetwatch.preset $(W)/tree/usr/lib/systemd/system-preset/80-packetwatch.preset
	printf '%s\n' "* $$(LC_ALL=C date -ud @$(SOURCE_DATE_EPOCH) '+%a %b %d %Y') $(MAINTAINER) - $(VERSION)-1" \
		'- What changed: /usr/share/doc/packetwatch/CHANGELOG.md' >$(W)/changelog
	$(call fpm,rpm/fpm.options,--package $(RPM) --rpm-changelog $(W)/changelog \
		--description "$$(tail -n +2 debian/description)")
	echo $(RPM)

lint-packages: deb rpm ## lintian and rpmlint; each exception has its reason beside it
	lintian --info --pedantic --fail-on error,warning,info,pedantic $(DEB)
	rpmlint --config rpm/rpmlint.toml $(RPM)

deps-package: ## install what building and checking the packages needs
	@deps/install package

# Of all packages in $(PACKAGES): whoever pins a version still finds it.
repo: R = $(REPO)
repo: deb rpm ## signed repositories for apt and dnf in build/repo: make repo REPO_KEY=ID [REPO_URL=URL]
	$(if $(REPO_KEY),,$(error Which key signs? make repo REPO_KEY=ID, with an id that gpg --list-secret-keys shows))
	rm -rf $(R) && mkdir -p $(R)/apt $(R)/dnf
	gpg --batch --armor --export $(REPO_KEY) >$(R)/packetwatch.asc
	cp $(PACKAGES)/*.deb $(R)/apt
	cp debian/packetwatch.sources $(R) && cp rpm/packetwatch.repo $(R)
	cd $(R)/apt && apt-ftparchive packages . >Packages && gzip -9nk Packages
	cd $(R)/apt && apt-ftparchive -c $(CURDIR)/debian/release.conf release . >../Release && mv ../Release .
	gpg --batch --local-user $(REPO_KEY) --clearsign --output $(R)/apt/InRelease $(R)/apt/Release
	cp $(PACKAGES)/*.rpm $(R)/dnf
	rpmsign --define '_gpg_name $(REPO_KEY)' --define '__gpg /usr/bin/gpg' --addsign $(R)/dnf/*.rpm
	createrepo_c --quiet --no-database $(R)/dnf
	gpg --batch --local-user $(REPO_KEY) --armor --detach-sign $(R)/dnf/repodata/repomd.xml
	sed -i 's|@URL@|$(or $(REPO_URL),https://packages.packetwatch.example)|' $(R)/packetwatch.sources $(R)/packetwatch.repo
	echo $(R)
