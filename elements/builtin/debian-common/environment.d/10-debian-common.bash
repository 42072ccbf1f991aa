export DISTRO_NAME=debian
export DIB_INIT_SYSTEM=systemd
export EFI_BOOT_DIR=EFI/debian

export DIB_DEBIAN_COMPONENTS=${DIB_DEBIAN_COMPONENTS:-main}
export DIB_DEBIAN_COMPONENTS_WS=${DIB_DEBIAN_COMPONENTS//,/ }
export DIB_DEBOOTSTRAP_DEFAULT_LOCALE=${DIB_DEBOOTSTRAP_DEFAULT_LOCALE:-C.UTF-8}

# A tree that came from elsewhere says itself which release it is.
if [ -z "${DIB_RELEASE:-}" ] && [ -n "${DIB_BASE_IMAGE:-}" ]; then
    for os_release in "${TARGET_ROOT:-${TMP_MOUNT_PATH:-}}/etc/os-release" /etc/os-release; do
        if [ -z "${DIB_RELEASE:-}" ] && [ -f "$os_release" ]; then
            # shellcheck disable=SC1090 # the file of another system
            DIB_RELEASE=$(. "$os_release"; echo "${VERSION_CODENAME:-}")
        fi
    done
fi
export DIB_RELEASE=${DIB_RELEASE:-bookworm}

if [ -z "${DIB_DEBIAN_KERNEL_FLAVOUR:-}" ]; then
    case $ARCH in
        i386) DIB_DEBIAN_KERNEL_FLAVOUR=686 ;;
        armhf) DIB_DEBIAN_KERNEL_FLAVOUR=armmp ;;
        ppc64el | ppc64le) DIB_DEBIAN_KERNEL_FLAVOUR=powerpc64le ;;
        x86_64) DIB_DEBIAN_KERNEL_FLAVOUR=amd64 ;;
        aarch64) DIB_DEBIAN_KERNEL_FLAVOUR=arm64 ;;
        *) DIB_DEBIAN_KERNEL_FLAVOUR=$ARCH ;;
    esac
fi
export DIB_DEBIAN_KERNEL_FLAVOUR
